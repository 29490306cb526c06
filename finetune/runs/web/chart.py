"""Curves as the page draws them: coordinates, of which the template makes SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune.runs.view.curves import Point
from finetune.runs.view.words import short

WIDTH = 380
LEFT, RIGHT, TOP, BOTTOM = 52, 368, 6, 120
"""The edges of the curves in the picture."""
TICKS = 4
SMOOTHED = 0.04
BARS, GAP = 60, 4
"""How high bars are and how far apart."""
OUTLIERS = 0.02
"""Share of the highest values that may leave the picture."""


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    label: str


class Line(NamedTuple):
    """A curve."""

    name: str
    mean: str
    """Points of a polyline."""
    band: str
    """Points of the polygon between the lowest and the highest values."""
    last: str


class Bar(NamedTuple):
    """A bar: its left and upper edge, width and height."""

    x: float
    y: float
    width: float
    height: float
    label: str


class Chart(NamedTuple):
    """Curves over the steps."""

    title: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]


def chart(title: str, series: Mapping[str, Sequence[Point]]) -> Chart:
    """A chart of curves with at least a point each, by name; one that is alone needs none."""
    points = [point for curve in series.values() for point in curve]
    first, last = min(point.step for point in points), max(point.step for point in points)
    low = min(point.low for point in points)
    high = sorted(point.high for point in points)[int((len(points) - 1) * (1 - OUTLIERS))]
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    x = _scale(first, max(last, first + 1), LEFT, RIGHT)
    y = _scale(low - margin, high + margin, BOTTOM, TOP)
    lines = []
    for name, curve in series.items():
        means = smoothed([point.mean for point in curve])
        around = [(p.step, p.high) for p in curve] + [(p.step, p.low) for p in curve[::-1]]
        along = [(point.step, mean) for point, mean in zip(curve, means, strict=True)]
        mean, band = (" ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in way) for way in (along, around))
        lines.append(Line(name, mean, band, short(means[-1])))
    across = [Tick(x(value), _thousands(value)) for value in ticks(first, last)]
    return Chart(title, lines, across, [Tick(y(value), short(value)) for value in ticks(low - margin, high + margin)])


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred moving average over SMOOTHED of the values; at the ends over what there is of them."""
    half = int(len(values) * SMOOTHED / 2)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def bars(values: Sequence[float | None]) -> list[Bar]:
    """A bar for each value from 0 up, side by side; those that are missing leave a gap."""
    highest = max((value for value in values if value is not None), default=0.0) or 1.0
    width = (WIDTH + GAP) / max(1, len(values))
    return [
        Bar(i * width, BARS * (1 - value / highest), width - GAP, BARS * value / highest, f"{value:.2g}")
        for i, value in enumerate(values)
        if value is not None
    ]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, TICKS or a few more."""
    if not high > low:
        return [low]
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = max(size * factor for factor in (1, 2, 5) if size * factor <= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _scale:
    """From values to coordinates, which stay in the picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.span, self.start, self.end = low, high - low, start, end

    def __call__(self, value: float) -> float:
        share = min(1.0, max(0.0, (value - self.low) / self.span))
        return self.start + share * (self.end - self.start)


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
