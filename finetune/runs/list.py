"""The runs of a folder, one line each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.errors import UserError
from finetune.runs.folder import AsJson
from finetune.runs.status import COLOURS, NARROW
from finetune.runs.view.figures import said
from finetune.runs.view.overview import overviews
from finetune.runs.view.words import about, duration, fixed, short

UNREADABLE = "unreadable"
SHOWN = {"loss": fixed(5), "images_per_s": short, "eta_s": duration, "heartbeat_age_s": about}


def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder in which runs lie.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder, one line each; the loss is the mean of the last 50 steps."""
    rows = list(_rows(folder))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console = Console()
        console.print(_table(rows, console.width) if rows else f"no runs in {folder}", soft_wrap=not rows)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for name, look in overviews(folder).items():
        if isinstance(look, UserError):
            yield {"name": name, "health": UNREADABLE, "reason": str(look)}
            continue
        values = look.values
        yield {
            "name": name,
            "health": look.health,
            "step": look.step,
            "total_steps": look.total_steps,
            "loss": values.get("loss_mean"),
            "images_per_s": values.get("images_per_s"),
            "eta_s": values.get("eta_s"),
            "heartbeat_age_s": look.heartbeat_age_s,
            "host": look.host,
        }


def _table(rows: list[dict[str, Any]], width: int) -> Table:
    """The runs in so many letters a line: where these are few, what matters most."""
    columns = ("run", "health", "step", "loss", "images/s", "ETA", "heartbeat", "machine")
    shown = columns[:3] if width < NARROW else columns
    table = Table(*shown, box=None)
    for row in rows:
        health = Text(row["health"], COLOURS.get(row["health"], "yellow"))
        if row["health"] == UNREADABLE:
            table.add_row(Text(row["name"]), health)
            continue
        total = row["total_steps"]
        step = f"{row['step']:,} of {total:,}, {row['step'] / total:.0%}" if total else f"{row['step']:,}"
        figures = (said(form, row, key) or "" for key, form in SHOWN.items())
        cells: list[Text | str] = [Text(row["name"]), health, step, *figures, Text(row["host"])]
        table.add_row(*cells[: len(shown)])
    return table
