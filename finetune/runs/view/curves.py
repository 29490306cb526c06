"""The curves of a run, read at a bounded number of places."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.runs.view.overview import INTERVALS, METRICS, VALIDATION
from finetune.runs.view.tail import Line, mean, numbers, spread_lines
from finetune.runs.view.words import plain

PLACES = 160


class Point(NamedTuple):
    """A stretch of a curve: the mean, lowest and highest value of the lines that were read of it."""

    step: float
    """Its middle."""
    mean: float
    low: float
    high: float


Curves = dict[str, list[Point]]


def read_curves(folder: Path) -> Curves:
    """loss, grad_norm, lr/GROUP, images_per_s and validation_loss, as far as the run has them."""
    steps, intervals, validations = (spread_lines(folder / name, PLACES) for name in (METRICS, INTERVALS, VALIDATION))
    rates = [[_rates(line) for line in lines] for lines in steps]
    names = dict.fromkeys(name for lines in rates for name in lines[-1] if name.startswith("lr/"))
    found = {
        "loss": curve(steps, "loss"),
        "validation_loss": curve(validations, "loss"),
        "images_per_s": curve(intervals, "images_per_s") or curve(steps, "images_per_s"),
        "grad_norm": curve(steps, "grad_norm"),
        **{name: curve(rates, name) for name in names},
    }
    return {name: points for name, points in found.items() if points}


def curve(groups: Sequence[Sequence[Line]], key: str) -> list[Point]:
    """A point of each group of lines in which a key has a value."""
    points = []
    for lines in groups:
        values, step = numbers(line.get(key) for line in lines), mean(line.get("step") for line in lines)
        if values and step is not None:
            points.append(Point(step, sum(values) / len(values), min(values), max(values)))
    return points


def _rates(line: Line) -> Line:
    """A step's learning rates by the names of their curves."""
    rates = line.get("lr")
    named = {f"lr/{plain(group)}": rate for group, rate in rates.items()} if isinstance(rates, dict) else {}
    return {"step": line.get("step"), **named}
