"""The run's curves as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.diffusion.objective import DECILES
from finetune.monitor.intervals import ACTIVITIES

INK, LIGHT = "#1f4e79", "#9dc3e6"
SMOOTHING_SHARE = 0.02
MOST_POINTS = 4000
"""Of a smoothed curve: more than a picture can show."""
UNKNOWN = [None] * DECILES
"""Of steps that were written down before there were deciles."""


def draw_curves(
    lines: Sequence[dict[str, Any]],
    intervals: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    path: Path,
) -> Path:
    """Draw loss, loss by timesteps, gradient norm, learning rates, speed and where the time goes over the steps of
    metrics.jsonl, intervals.jsonl and validation.jsonl; PNG."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    steps = _column(lines, "step")
    _curve(axes[0, 0], "loss", steps, _column(lines, "loss"))
    _deciles(axes[0, 1], steps, lines)
    _curve(axes[0, 2], "gradient norm before clipping", steps, _column(lines, "grad_norm"))
    _curve(axes[1, 1], "images/s", steps, _column(lines, "images_per_s"))
    _shares(axes[1, 2], intervals)
    if validation:
        places = _column(validation, "step")
        axes[0, 0].plot(places, _column(validation, "loss"), "o-", color="#c55a11", markersize=3, label="validation")
        axes[0, 0].legend(frameon=False)
    for group in dict.fromkeys(group for line in lines for group in line["lr"]):
        axes[1, 0].plot(steps, [line["lr"].get(group, np.nan) for line in lines], label=group)
    axes[1, 0].set_title("learning rate", loc="left")
    axes[1, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step")
    figure.savefig(path, dpi=110)
    return path


def _deciles(axis: Axes, steps: npt.NDArray[np.float64], lines: Sequence[dict[str, Any]]) -> None:
    """The loss without weights by tenths of the timesteps."""
    for i, color in enumerate(colormaps["viridis"](np.linspace(0.0, 0.95, DECILES))):
        values = np.array([line.get("loss_by_decile", UNKNOWN)[i] for line in lines], dtype=np.float64)
        axis.plot(*smoothed(steps, values), color=color, linewidth=1.2)
    axis.set_title("loss by tenths of the timesteps, not weighted: the least noisy is darkest", loc="left", fontsize=10)
    axis.set_yscale("log")


def _shares(axis: Axes, intervals: Sequence[dict[str, Any]]) -> None:
    """Where the time goes; what is missing to 1 is none of these."""
    shares = [_column(intervals, f"{name}_share") for name in ACTIVITIES]
    axis.stackplot(_column(intervals, "step"), shares, labels=[name.replace("_", " ") for name in ACTIVITIES])
    axis.set_title("share of time", loc="left")
    axis.set_ylim(0.0, 1.05)
    axis.legend(ncols=2, loc="lower right")


def _curve(axis: Axes, title: str, steps: npt.NDArray[Any], values: npt.NDArray[np.float64]) -> None:
    axis.plot(steps, values, color=LIGHT, linewidth=0.8)
    axis.plot(*smoothed(steps, values), color=INK, linewidth=1.6)
    axis.set_title(title, loc="left")


def smoothed(
    steps: npt.NDArray[Any], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """A centred moving average over 2% of the steps, of those values that are numbers; at the ends over what there is
    of them, and NaN where there is none. Of many steps every n-th has one, averaged over blocks of n."""
    if not len(values):
        return steps, values
    firsts, there = np.arange(0, len(values), -(-len(values) // MOST_POINTS)), np.isfinite(values)
    counts = np.add.reduceat(there.astype(np.float64), firsts)
    totals = np.add.reduceat(np.where(there, values, 0.0), firsts)
    kernel = np.ones(2 * int(len(firsts) * SMOOTHING_SHARE / 2) + 1)
    count, total = np.convolve(counts, kernel, "same"), np.convolve(totals, kernel, "same")
    return steps[firsts], np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _column(lines: Sequence[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([line[name] for line in lines], dtype=np.float64)
