"""How a run is, also after its death."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune.errors import UserError
from finetune.runs.folder import AsJson, RunFolder
from finetune.runs.view.curves import Curves, read_curves
from finetune.runs.view.events import event_time, told, tone
from finetune.runs.view.figures import KEYS, shown
from finetune.runs.view.overview import Overview, overview
from finetune.runs.view.tail import Line
from finetune.runs.view.words import about, plain, sparkline

EXIT_CODES = {"healthy": 0, "finished": 0, "stale": 3, "failed": 4, "stopped": 5, "paused": 6, "preempted": 7}
COLOURS = {"healthy": "green", "finished": "green", "stale": "red", "failed": "red"}
TONES = {"good": "green", "doubtful": "yellow", "bad": "red", "plain": "default"}
REFRESH_S = 2.0
SPARKS = 40
NARROW = 72
"""Letters in a line below which there is one thing beside another no more, as on a phone."""
EVENTS_SHOWN = 8


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run is, also after its death. Exit code: 0 healthy or finished, 3 stale, 4 failed, 5 stopped, 6 paused
    while data cannot be read, 7 preempted (asked to stop, and saved)."""
    if watch and as_json:
        raise UserError("--watch shows a table and --json prints once: give one of them")
    look, console = overview(run), Console()
    if watch:
        look = _watched(look, console)
    if as_json:
        print(json.dumps(_plain(look), indent=1))
    else:
        console.print(_screen(look, console.width))
    raise typer.Exit(EXIT_CODES[look.health])


def _watched(look: Overview, console: Console) -> Overview:
    """Show a run until Ctrl-C; how it was then."""
    with Live(_screen(look, console.width), console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                time.sleep(REFRESH_S)
                look = overview(look.folder)
                live.update(_screen(look, console.width), refresh=True)
        except KeyboardInterrupt:
            return look


def _plain(look: Overview) -> dict[str, Any]:
    """Everything as plain values: the fields of status.json, and what the other files say."""
    values = look.values
    return {
        **look.status,
        "health": look.health,
        "heartbeat_age_s": look.heartbeat_age_s,
        "figures": {key: values[key] for key in KEYS if key in values},
        "metrics": look.metrics,
        "interval": look.interval,
        "validation": look.validation,
        "curves": {name: [point._asdict() for point in points] for name, points in read_curves(look.folder).items()},
        "events": look.events,
        "checkpoints": [checkpoint.name for checkpoint in look.checkpoints],
    }


def _screen(look: Overview, width: int) -> Group:
    narrow = width < NARROW
    curves = _curves(read_curves(look.folder), max(1, min(SPARKS, width - 32)), ends=not narrow)
    events = _events_below(look) if narrow else _events(look)
    return Group(*_head(look), Text(), _figures(look, 1 if narrow else 2), *curves, *events, _foot(look))


def _head(look: Overview) -> Iterator[RenderableType]:
    colour = COLOURS.get(look.health, "yellow")
    yield Text.assemble((look.name, "bold"), "  ", (f" {look.health} ", f"bold reverse {colour}"), f"  {look.sentence}")
    total = look.total_steps
    yield Text(f"step {look.step:,} of {total:,}" if total else f"step {look.step:,}")
    if total:
        yield ProgressBar(total, look.step, width=SPARKS + 30, complete_style=colour, finished_style=colour)


def _figures(look: Overview, beside: int) -> Table:
    """The groups of figures, so many beside each other."""
    tables = []
    for group, figures in shown(look.values).items():
        table = Table(box=None, show_header=False, title=group, title_justify="left", title_style="bold")
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in figures.items():
            table.add_row(label, Text(text))
        tables.append(table)
    grid = Table.grid(padding=(0, 3, 0, 0))
    for i in range(0, len(tables), beside):
        grid.add_row(*tables[i : i + beside])
        grid.add_row()
    return grid


def _curves(curves: Curves, sparks: int, *, ends: bool) -> Iterator[RenderableType]:
    """Small curves of so many letters, with both of their ends or the last value alone."""
    table = Table(box=None, show_header=False, title="curves", title_justify="left", title_style="bold")
    for name, points in curves.items():
        means = [point.mean for point in points]
        figures = f"{means[0]:.4g} → {means[-1]:.4g}" if ends else f"{means[-1]:.4g}"
        table.add_row(Text(name.replace("_", " "), "dim"), Text(sparkline(means, sparks), "cyan"), figures)
    if curves:
        yield table


def _events(look: Overview) -> Iterator[RenderableType]:
    table = Table(box=None, show_header=False, title="events", title_justify="left", title_style="bold", expand=True)
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for event in look.events[:EVENTS_SHOWN]:
        table.add_row(_ago(look, event), _kind(event), Text(told(event)))
    if look.events:
        yield Text()
        yield table


def _events_below(look: Overview) -> Iterator[RenderableType]:
    """The events with all that is told of them, each below its kind."""
    if look.events:
        yield Text("\nevents", "bold")
    for event in look.events[:EVENTS_SHOWN]:
        yield Text.assemble(_kind(event), "  ", (_ago(look, event), "dim"))
        if text := told(event):
            yield Padding(Text(text), (0, 0, 0, 2))


def _ago(look: Overview, event: Line) -> str:
    happened = event_time(event)
    return f"{about(look.now - happened)} ago" if happened else ""


def _kind(event: Line) -> Text:
    return Text(plain(str(event.get("kind"))), TONES[tone(event)])


def _foot(look: Overview) -> Text:
    names = [checkpoint.name for checkpoint in look.checkpoints]
    kept = f"{len(names)} checkpoint{'s'[: len(names) != 1]}, the newest {names[-1]}" if names else "no checkpoint yet"
    where = f"{look.host}, pid {look.status.get('pid', 'unknown')}"
    return Text(f"\n{kept}\n{where}, heartbeat {about(look.heartbeat_age_s)} ago", "dim")
