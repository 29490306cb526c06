"""What a recipe makes of its data: which buckets its samples fill, and how much is scaled up, cut away or left out."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from finetune.config import Config
from finetune.data.buckets import I64, NONE, PIECE, assign_buckets, bucket_sizes
from finetune.data.config import BucketsConfig, SourceConfig
from finetune.data.geometry import F64, cropped_shares, scale_factors
from finetune.data.index import Index
from finetune.data.layout import SourceSamples
from finetune.data.overlay import Overlay
from finetune.data.prepare import DataSet, PlanSettings, weighted_counts
from finetune.data.samples import place_of

GIB = 2**30
ROWS_SHOWN = 30
BARS_SHOWN = 60
BARS_AT_LEAST = 8
"""Where there are fewer buckets, their bars are drawn as thin as if there were so many."""
INK, LIGHT, WARM, FAINT = "#1f4e79", "#9dc3e6", "#c8553d", "#eeeeee"
DARKEST = 0.25
"""Share cropped away that is drawn darkest, unless a bucket has more."""
SHADES = LinearSegmentedColormap.from_list("cropped away", [LIGHT, INK, "#0b1d2e"])
OCTAVE_STEPS = 8
EDGES = 2.0 ** (np.arange(-4 * OCTAVE_STEPS, 3 * OCTAVE_STEPS + 1) / OCTAVE_STEPS)
"""Borders of the classes of scale factors, each with its upper one; the outermost take in what lies beyond."""


@dataclass(frozen=True)
class SourceFigures:
    """What one source gives to training; its samples are those that are not left out."""

    name: str
    path: str
    samples: int
    left_out: int
    repeats: float
    draws: float
    """An epoch, on average: `repeats`, and what folders' names ask for."""
    with_tags: int
    with_caption: int
    bytes: int


@dataclass(frozen=True)
class BucketFigures:
    """The samples of one bucket."""

    width_px: int
    height_px: int
    samples: int
    draws: float
    """An epoch, on average."""
    share: float
    """Of all draws."""
    scaled_up: float
    """Share of its samples."""
    cropped: float
    """Mean share of the scaled picture's area that is cut away."""


@dataclass(frozen=True)
class Stats:
    """All figures of a recipe's data."""

    samples: int
    draws: float
    scaled_up: float
    cropped: float
    sources: list[SourceFigures]
    buckets: list[BucketFigures]
    """Those in use, narrowest first."""
    left_out: dict[str, int]
    """Samples by the reason."""
    factors: list[int]
    """Samples by their scale factor, in the classes between EDGES."""

    def to_plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "factor_edges": EDGES.tolist()}


@dataclass(frozen=True)
class _Opened:
    """A source with its samples in their buckets."""

    name: str
    config: SourceConfig
    index: Index
    samples: SourceSamples
    overlay: Overlay | None
    excluded: I64
    """Rows that `data.exclude` names."""


class _Sums(NamedTuple):
    """Of every bucket, float64 [buckets] each; of all together, the samples in every class of factors."""

    samples: F64
    draws: F64
    scaled_up: F64
    cropped: F64
    factors: F64


def collect(config: Config) -> Stats:
    """Look at the whole data of a recipe, as a run that begins now would.

    Raises:
        UserError: the data cannot be opened, or are fewer than a micro-batch.
    """
    settings = PlanSettings(config.train.micro_batch, config.train.global_batch, config.run.seed)
    sizes = bucket_sizes(config.data.buckets)
    with tempfile.TemporaryDirectory() as kept:
        opened = _open(DataSet(config.data, settings, Path(kept)))
        sums = [_sums(source, sizes) for source in opened]
        sources = [_source(source, float(part.draws.sum())) for source, part in zip(opened, sums, strict=True)]
        left_out = sum((_reasons(source, config.data.buckets) for source in opened), Counter[str]())
    whole = _Sums(*(np.sum(parts, axis=0) for parts in zip(*sums, strict=True)))
    total = int(whole.samples.sum())
    return Stats(
        samples=total,
        draws=float(whole.draws.sum()),
        scaled_up=float(whole.scaled_up.sum()) / max(total, 1),
        cropped=float(whole.cropped.sum()) / max(total, 1),
        sources=sources,
        buckets=_buckets(whole, sizes),
        left_out=dict(left_out),
        factors=whole.factors.astype(np.int64).tolist(),
    )


def _open(dataset: DataSet) -> list[_Opened]:
    journal = dataset.began()
    excluded = [place_of(sample) for sample in journal.excluded(0)]
    configs, bucketed = dataset.data.all_sources.values(), dataset.bucketed(journal.editions[0])
    opened = []
    for source, config, samples in zip(dataset.sources(journal).all, configs, bucketed, strict=True):
        shards, overlay = source.index.shards, source.overlay(0)
        own = [place for place in excluded if place.source == samples.number and place.shard < len(shards)]
        rows = [source.row(place) for place in own if place.ordinal < shards[place.shard].samples]
        opened.append(_Opened(source.name, config, source.index, samples, overlay, np.array(rows, dtype=np.int64)))
    return opened


def _sums(source: _Opened, sizes: I64) -> _Sums:
    count, index = len(sizes), source.index
    samples, scaled_up, cropped, factors = (np.zeros(n) for n in (count, count, count, len(EDGES) - 1))
    trained = _trained(source)
    # In pieces, so that memory stays flat for 100 million samples.
    for start in range(0, len(trained), PIECE):
        rows = trained[start : start + PIECE]
        pictures = (index.width[rows], index.height[rows], buckets := source.samples.buckets[rows], sizes)
        factor = scale_factors(*pictures)
        samples += np.bincount(buckets, minlength=count)
        scaled_up += np.bincount(buckets[factor > 1], minlength=count)
        cropped += np.bincount(buckets, cropped_shares(*pictures), minlength=count)
        factors += np.bincount(np.searchsorted(EDGES[1:-1], factor), minlength=len(factors))
    return _Sums(samples, weighted_counts(source.samples, count), scaled_up, cropped, factors)


def _trained(source: _Opened) -> I64:
    """Rows of the samples that are trained: int64 [samples]."""
    trained = source.samples.buckets != NONE
    trained[source.excluded] = False
    return np.flatnonzero(trained)


def _source(source: _Opened, draws: float) -> SourceFigures:
    trained, index, overlay = _trained(source), source.index, source.overlay
    tags, captions = index.numbers("has_tags"), index.numbers("has_caption")
    if overlay:
        tags, captions = overlay.have("tags", tags), overlay.have("captions", captions)
    return SourceFigures(
        name=source.name,
        path=source.config.path,
        samples=len(trained),
        left_out=len(index) - len(trained),
        repeats=source.config.repeats,
        draws=draws,
        with_tags=int(np.count_nonzero(tags[trained])),
        with_caption=int(np.count_nonzero(captions[trained])),
        bytes=int(index.sizes()[trained].sum()),
    )


def _reasons(source: _Opened, limits: BucketsConfig) -> Counter[str]:
    """How many samples are left out for what; of several reasons the first."""
    index = source.index
    overlaid, excluded = np.zeros((2, len(index)), dtype=bool)
    excluded[source.excluded] = True
    if source.overlay:
        overlaid[source.overlay.left_out] = True
    shorter = np.minimum(index.width, index.height)
    reasons = {
        f"shorter side below min_image_px ({limits.min_image_px})": shorter < limits.min_image_px,
        "left out by the overlay": overlaid,
        "named in data.exclude": excluded,
        "too small for every bucket without upscaling": assign_buckets(index.width, index.height, limits) == NONE,
        "in a rare bucket, and too small for those that are kept": source.samples.buckets == NONE,
    }
    counts, told = Counter[str](), np.zeros(len(index), dtype=bool)
    for reason, rows in reasons.items():
        counts[reason] = int(np.count_nonzero(rows & ~told))
        told |= rows
    return +counts


def _buckets(sums: _Sums, sizes: I64) -> list[BucketFigures]:
    used = np.flatnonzero(sums.draws)
    # Those for smaller pictures come last in `sizes`.
    narrowest_first = used[np.lexsort((sizes[used, 0], sizes[used, 0] / sizes[used, 1]))]
    return [
        BucketFigures(
            width_px=int(sizes[bucket, 0]),
            height_px=int(sizes[bucket, 1]),
            samples=int(sums.samples[bucket]),
            draws=float(sums.draws[bucket]),
            share=float(sums.draws[bucket] / sums.draws.sum()),
            scaled_up=float(sums.scaled_up[bucket] / max(sums.samples[bucket], 1)),
            cropped=float(sums.cropped[bucket] / max(sums.samples[bucket], 1)),
        )
        for bucket in narrowest_first
    ]


def tables(stats: Stats) -> list[Table]:
    """The figures for people to read."""
    return [_source_table(stats), _bucket_table(stats), _factor_table(stats), _left_out_table(stats)]


def _source_table(stats: Stats) -> Table:
    names = ("source", "samples", "left out", "repeats", "draws", "tags", "caption", "GiB")
    table = _table("sources, and their draws an epoch", *names)
    for source in stats.sources:
        numbers = (f"{source.samples:,}", f"{source.left_out:,}", f"{source.repeats:g}", f"{source.draws:,.0f}")
        shares = (f"{n / max(source.samples, 1):.1%}" for n in (source.with_tags, source.with_caption))
        table.add_row(source.name, *numbers, *shares, f"{source.bytes / GIB:,.2f}")
    return table


def _bucket_table(stats: Stats) -> Table:
    shown, title = _fullest(stats.buckets, ROWS_SHOWN)
    table = _table(title, "bucket", "aspect", "samples", "draws", "share", "scaled up", "cropped")
    for b in shown:
        shares = (f"{share:.1%}" for share in (b.share, b.scaled_up, b.cropped))
        aspect = f"{b.width_px / b.height_px:.2f}"
        table.add_row(f"{b.width_px}×{b.height_px}", aspect, f"{b.samples:,}", f"{b.draws:,.0f}", *shares)
    table.add_section()
    table.add_row(
        "all", "", f"{stats.samples:,}", f"{stats.draws:,.0f}", "", f"{stats.scaled_up:.1%}", f"{stats.cropped:.1%}"
    )
    return table


def _factor_table(stats: Stats) -> Table:
    """Classes of half an octave, from a quarter of the size to four times it."""
    table = _table("scaled by", "from", "to", "samples", "share")
    borders = [0, *range(2 * OCTAVE_STEPS, 6 * OCTAVE_STEPS + 1, OCTAVE_STEPS // 2), len(stats.factors)]
    for first, end in pairwise(borders):
        if count := sum(stats.factors[first:end]):
            lower = f"{EDGES[first]:.2f}" if first else ""
            upper = f"{EDGES[end]:.2f}" if end < len(stats.factors) else ""
            table.add_row(lower, upper, f"{count:,}", f"{count / stats.samples:.1%}")
    return table


def _left_out_table(stats: Stats) -> Table:
    table = _table("left out", "reason", "samples")
    for reason, count in stats.left_out.items():
        table.add_row(reason, f"{count:,}")
    if not stats.left_out:
        table.add_row("nothing", "0")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _fullest(buckets: Sequence[BucketFigures], most: int) -> tuple[list[BucketFigures], str]:
    """The buckets with the most samples, narrowest first, and a title that says what is not shown."""
    if len(buckets) <= most:
        return list(buckets), "buckets"
    fullest = sorted(range(len(buckets)), key=lambda i: -buckets[i].samples)[:most]
    kept = [buckets[i] for i in sorted(fullest)]
    rest = 1 - sum(b.share for b in kept)
    return kept, f"the {len(kept)} fullest of {len(buckets)} buckets; {rest:.1%} of the draws are in the others"


def draw(stats: Stats, path: Path) -> None:
    """Draw samples per bucket, the share of them that is scaled up, and all scale factors; PNG."""
    shown, title = _fullest(stats.buckets, BARS_SHOWN)
    height = max(5.0, 1.8 + 0.21 * len(shown))
    figure = Figure(figsize=(14, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"samples: {stats.samples:,}   buckets: {len(stats.buckets):,}   scaled up: {stats.scaled_up:.1%}   "
        f"cropped away: {stats.cropped:.1%}   left out: {sum(stats.left_out.values()):,}"
    )
    filled, up, factors = figure.subplots(1, 3, width_ratios=[5, 1.4, 4])
    scale = _draw_filled(filled, shown, title)
    legend = figure.colorbar(scale, ax=filled, location="bottom", pad=0.15 / height, shrink=0.6, aspect=40)
    legend.set_label("mean share cropped away")
    legend.ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _draw_scaled_up(up, shown)
    if stats.samples:
        _draw_factors(factors, stats)
    for axis in (filled, up, factors):
        axis.spines[["top", "right"]].set_visible(False)
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
    axis.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    return ScalarMappable(scale, SHADES)


def _draw_scaled_up(axis: Axes, buckets: Sequence[BucketFigures]) -> None:
    axis.barh(range(len(buckets)), [1.0] * len(buckets), color=FAINT)
    axis.barh(range(len(buckets)), [b.scaled_up for b in buckets], color=WARM)
    _name_buckets(axis, buckets)
    axis.set_yticks([])
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
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
    axis.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axis.set_title("samples by scale factor: right of 1× they are scaled up", loc="left")
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
