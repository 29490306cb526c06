"""The run's curves as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, LIGHT = "#1f4e79", "#9dc3e6"
SMOOTHING_SHARE = 0.02


def draw_curves(lines: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw loss, gradient norm, learning rates and speed over the steps of metrics.jsonl and validation.jsonl; PNG."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    steps = np.array([line["step"] for line in lines])
    _curve(axes[0, 0], "loss", steps, _column(lines, "loss"))
    _curve(axes[0, 1], "gradient norm before clipping", steps, _column(lines, "grad_norm"))
    _curve(axes[1, 1], "images/s", steps, _column(lines, "images_per_s"))
    if validation:
        places = [line["step"] for line in validation]
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


def _curve(axis: Axes, title: str, steps: npt.NDArray[Any], values: npt.NDArray[np.float64]) -> None:
    axis.plot(steps, values, color=LIGHT, linewidth=0.8)
    axis.plot(steps, smoothed(values), color=INK, linewidth=1.6)
    axis.set_title(title, loc="left")


def smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A centred moving average over 2% of the steps; at the ends over what there is of them."""
    half = int(len(values) * SMOOTHING_SHARE / 2)
    kernel = np.ones(2 * half + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _column(lines: Sequence[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([line[name] for line in lines], dtype=np.float64)
