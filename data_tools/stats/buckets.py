"""Which buckets a recipe's samples fill, and how much is scaled up, cut away or left out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from data_tools.stats.sources import OpenSource
from finetune.data.buckets import I64, PIECE, bucket_sizes
from finetune.data.geometry import F64, cropped_shares, scale_factors
from finetune.data.prepare import weighted_counts

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
    with_mask: int
    """Those with a mask beside them."""
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


class _Sums(NamedTuple):
    """Of every bucket, float64 [buckets] each; of all together, the samples in every class of factors."""

    samples: F64
    draws: F64
    scaled_up: F64
    cropped: F64
    factors: F64


def collect(opened: Sequence[OpenSource]) -> Stats:
    """Look at the whole data of a recipe, as a run that begins now would in its first epoch.

    Args:
        opened: its sources.
    """
    sizes = bucket_sizes(opened[0].sizes)
    sums = [_sums(source, sizes) for source in opened]
    sources = [_source(source, float(part.draws.sum())) for source, part in zip(opened, sums, strict=True)]
    left_out = sum((_reasons(source) for source in opened), Counter[str]())
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


def _sums(source: OpenSource, sizes: I64) -> _Sums:
    count, index = len(sizes), source.stored.index
    samples, scaled_up, cropped, factors = (np.zeros(n) for n in (count, count, count, len(EDGES) - 1))
    trained = source.trained()
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


def _source(source: OpenSource, draws: float) -> SourceFigures:
    trained, index = source.trained(), source.stored.index
    return SourceFigures(
        name=source.stored.name,
        path=source.config.path,
        samples=len(trained),
        left_out=len(index) - len(trained),
        repeats=source.config.repeats,
        draws=draws,
        with_tags=int(np.count_nonzero(source.stored.have("tags", 0)[trained])),
        with_caption=int(np.count_nonzero(source.stored.have("captions", 0)[trained])),
        with_mask=int(np.count_nonzero(index.numbers("mask_size")[trained])),
        bytes=int(index.sizes()[trained].sum()),
    )


def _reasons(source: OpenSource) -> Counter[str]:
    """How many samples are left out for what; of several reasons the first."""
    counts = Counter[str]()
    total = len(source.stored.index)
    for start in range(0, total, PIECE):
        rows = np.arange(start, min(start + PIECE, total))
        told = np.zeros(len(rows), dtype=bool)
        for reason, left_out in source.left_out(rows).items():
            counts[reason] += int(np.count_nonzero(left_out & ~told))
            told |= left_out
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


def fullest(buckets: Sequence[BucketFigures], most: int) -> tuple[list[BucketFigures], str]:
    """The buckets with the most samples, narrowest first, and a title that says what is not shown."""
    if len(buckets) <= most:
        return list(buckets), "buckets"
    fullest = sorted(range(len(buckets)), key=lambda i: -buckets[i].samples)[:most]
    kept = [buckets[i] for i in sorted(fullest)]
    rest = 1 - sum(b.share for b in kept)
    return kept, f"the {len(kept)} fullest of {len(buckets)} buckets; {rest:.1%} of the draws are in the others"
