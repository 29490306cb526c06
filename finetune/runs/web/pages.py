"""The pages: one of a run, one of all runs, and one that asks for the token. All text in them is escaped."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from finetune.errors import UserError
from finetune.runs.view.curves import Curves, read_curves
from finetune.runs.view.events import event_time, told, tone
from finetune.runs.view.figures import said, shown
from finetune.runs.view.overview import Overview
from finetune.runs.view.words import about, duration, fixed, percent, plain, short
from finetune.runs.web.chart import Chart, bars, chart

TEMPLATES = Path(__file__).parent / "templates"
STYLE = TEMPLATES / "style.css"
REFRESH_S = 30
OLDER = 6
"""Pictures of earlier steps that the page leads to."""
TONES = {"healthy": "good", "finished": "good", "stale": "bad", "failed": "bad"}
_TILES = {
    "loss_mean": ("loss", fixed(4)),
    "validation_loss": ("validation", fixed(4)),
    "images_per_s": ("images/s", short),
    "epoch": ("epoch", fixed(2)),
    "eta_s": ("to go", duration),
    "checkpoint_age_s": ("checkpoint age", about),
}
_ENVIRONMENT = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
_ENVIRONMENT.filters.update(about=about, percent=percent, told=told, tone=tone)


def run_page(look: Overview, pictures: Mapping[str, int], root: str) -> str:
    """The page of a run.

    Args:
        pictures: of its samples by name, each with its step, newest first.
        root: what leads from the page to the site's first one; empty where it is that.
    """
    values = look.values
    newest = max(pictures.values(), default=None)
    tiles = {label: text for key, (label, form) in _TILES.items() if (text := said(form, values, key)) is not None}
    return _ENVIRONMENT.get_template("run.html").render(
        look=look,
        root=root,
        refresh_s=REFRESH_S,
        tone=TONES.get(look.health, "doubtful"),
        tiles=tiles,
        charts=list(_charts(read_curves(look.folder))),
        deciles=bars(values.pop("loss_by_decile", [])),
        newest=[name for name, step in pictures.items() if step == newest],
        newest_step=newest,
        older=[(name, step) for name, step in pictures.items() if step != newest][:OLDER],
        events=[_event(event, look.now) for event in look.events],
        figures=shown(values),
        read=_clock(look.now),
    )


def runs_page(looks: Mapping[str, Overview | UserError]) -> str:
    """The page of a folder's runs, by the names of their folders."""
    readable = {name: look for name, look in looks.items() if isinstance(look, Overview)}
    return _ENVIRONMENT.get_template("runs.html").render(
        root="",
        refresh_s=REFRESH_S,
        runs=sorted(readable.items(), key=lambda item: item[1].heartbeat_age_s),
        tones={name: TONES.get(look.health, "doubtful") for name, look in readable.items()},
        unreadable={name: str(error) for name, error in looks.items() if isinstance(error, UserError)},
    )


def closed_page(root: str) -> str:
    """The page that asks for the token."""
    return _ENVIRONMENT.get_template("closed.html").render(root=root, refresh_s=None)


def _charts(curves: Curves) -> Iterator[Chart]:
    together = {
        "loss": {"training": "loss", "validation": "validation_loss"},
        "images per second": {"": "images_per_s"},
        "gradient norm": {"": "grad_norm"},
        "learning rate": {name.removeprefix("lr/"): name for name in curves if name.startswith("lr/")},
    }
    for title, names in together.items():
        series = {label: curves[name] for label, name in names.items() if name in curves}
        if series:
            yield chart(title, series)


def _event(event: Mapping[str, Any], now: float) -> dict[str, str]:
    happened = event_time(event)
    return {
        "kind": plain(str(event.get("kind"))),
        "tone": tone(event),
        "told": told(event),
        "ago": f"{about(now - happened)} ago" if happened else "",
        "time": _clock(happened) if happened else "",
    }


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
