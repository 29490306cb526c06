"""The figures of buckets as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import FuncFormatter

from data_tools.stats.buckets import EDGES, BucketFigures, Stats, fullest
from data_tools.stats.look import FAINT, INK, LIGHT, WARM, figure_of, in_counts, in_percent, open_frame

BARS_SHOWN = 60
BARS_AT_LEAST = 8
"""Where there are fewer buckets, their bars are drawn as thin as if there were so many."""
DARKEST = 0.25
"""Share cropped away that is drawn darkest, unless a bucket has more."""
SHADES = LinearSegmentedColormap.from_list("cropped away", [LIGHT, INK, "#0b1d2e"])


def draw_buckets(stats: Stats, path: Path) -> None:
    """Draw samples per bucket, the share of them that is scaled up, and all scale factors; PNG."""
    shown, title = fullest(stats.buckets, BARS_SHOWN)
    height = max(5.0, 1.8 + 0.21 * len(shown))
    heading = (
        f"samples: {stats.samples:,}   buckets: {len(stats.buckets):,}   scaled up: {stats.scaled_up:.1%}   "
        f"cropped away: {stats.cropped:.1%}   left out: {sum(stats.left_out.values()):,}"
    )
    figure = figure_of(14, height, heading)
    filled, up, factors = figure.subplots(1, 3, width_ratios=[5, 1.4, 4])
    scale = _draw_filled(filled, shown, title)
    legend = figure.colorbar(scale, ax=filled, location="bottom", pad=0.15 / height, shrink=0.6, aspect=40)
    legend.set_label("mean share cropped away")
    in_percent(legend.ax.xaxis)
    _draw_scaled_up(up, shown)
    if stats.samples:
        _draw_factors(factors, stats)
    open_frame(filled, up, factors)
    figure.savefig(path, dpi=110)


def _draw_filled(axis: Axes, buckets: Sequence[BucketFigures], title: str) -> ScalarMappable:
    """Bars of samples, the darker the more is cropped away. The scale of their shades."""
    scale = Normalize(0, max(DARKEST, *(b.cropped for b in buckets)))
    samples = [b.samples for b in buckets]
    bars = axis.barh(range(len(buckets)), samples, color=[SHADES(scale(b.cropped)) for b in buckets])
    axis.bar_label(bars, [f"{n:,}" for n in samples], padding=3, fontsize=8)
    _name_buckets(axis, buckets)
    axis.set_title(title, loc="left")
    axis.set_xlabel("samples")
    axis.margins(x=0.12)
    in_counts(axis.xaxis)
    return ScalarMappable(scale, SHADES)


def _draw_scaled_up(axis: Axes, buckets: Sequence[BucketFigures]) -> None:
    axis.barh(range(len(buckets)), [1.0] * len(buckets), color=FAINT)
    axis.barh(range(len(buckets)), [b.scaled_up for b in buckets], color=WARM)
    _name_buckets(axis, buckets)
    axis.set_yticks([])
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1])
    in_percent(axis.xaxis)
    axis.set_title("scaled up", loc="left")


def _name_buckets(axis: Axes, buckets: Sequence[BucketFigures]) -> None:
    """The same rows for the same buckets, the narrowest on top; few of them make no thick bars."""
    axis.set_yticks(range(len(buckets)), [f"{b.width_px}×{b.height_px}" for b in buckets], fontsize=8)
    spare = max(0, BARS_AT_LEAST - len(buckets)) / 2
    axis.set_ylim(len(buckets) - 0.4 + spare, -0.6 - spare)


def _draw_factors(axis: Axes, stats: Stats) -> None:
    used = np.flatnonzero(stats.factors)
    lower, upper = EDGES[used[0] : used[-1] + 1], EDGES[used[0] + 1 : used[-1] + 2]
    counts = stats.factors[used[0] : used[-1] + 1]
    colours = [WARM if edge > 1 else INK for edge in upper]
    axis.bar(lower, counts, upper - lower, align="edge", color=colours, edgecolor="white", linewidth=0.5)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xlim(min(0.5, lower[0]), max(2.0, upper[-1]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:g}×"))
    in_counts(axis.yaxis)
    axis.set_title("samples by scale factor: right of 1× they are scaled up", loc="left")
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
