"""What it takes to plan millions of samples, in a process of its own."""

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64, assign_buckets, bucket_sizes
from finetune.data.config import BucketsConfig
from finetune.data.layout import Layout, SourceSamples
from finetune.data.plan import Chapter, Plan
from tests.bench.figure import Figure
from tests.bench.timing import forget_peak, in_fresh_process, peak_mib

BUCKETS = BucketsConfig(resolution_px=768, max_side_px=1024, step_px=32)
PER_SHARD = 3300
PIECE = 1 << 20
REPEATS = {"3m3": 3, "100m": 1}
SAMPLES = {"3m3": 3_300_000, "100m": 100_000_000}
FAR_EPOCHS = 12
HALF_AGAIN = Fraction(3, 2)


class Planned(NamedTuple):
    """What planning took."""

    first_s: float
    """From sizes in pixels to the first step."""
    peak_mib: float
    """Growth of the process up to there."""
    far_s: float
    """To a step far into the run, after that."""


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Seconds to the first step and growth of memory, for 3.3 and 100 million samples.

    Args:
        work: unused; nothing is written.
        shared: unused; the samples are sizes in pixels only.
    """
    for name, samples in SAMPLES.items():
        runs = np.array([in_fresh_process(planned, samples, Fraction(1)) for _ in range(REPEATS[name])])
        first_s, mib, far_s = np.median(runs, axis=0)
        half = in_fresh_process(planned, samples, HALF_AGAIN)
        yield Figure(
            f"data.plan_{name}_s",
            float(first_s),
            "s",
            f"{samples:,} samples in shards of {PER_SHARD}, from sizes to step 0; {runs[:, 0].min():.2f} to "
            f"{runs[:, 0].max():.2f} in {len(runs)} runs; a step of epoch {FAR_EPOCHS} {far_s:.2f} s after it; with "
            f"repeats of {float(HALF_AGAIN)} {half.first_s:.2f} s, that step {half.far_s:.2f} s after it",
        )
        yield Figure(
            f"data.plan_{name}_mib",
            float(mib),
            "MiB",
            f"growth of the process at its peak, without the sizes themselves; with repeats of {float(HALF_AGAIN)} "
            f"{half.peak_mib:.0f} MiB",
        )


def planned(samples: int, repeats: Fraction) -> Planned:
    """Plan synthetic samples in this process."""
    widths, heights = _sizes(samples)
    first_rows = np.minimum(np.arange(0, samples + PER_SHARD, PER_SHARD), samples)
    forget_peak()
    before_mib, began = peak_mib(), time.perf_counter()
    buckets = assign_buckets(widths, heights, BUCKETS)
    sizes = bucket_sizes(BUCKETS)
    layout = Layout([SourceSamples(0, first_rows, buckets, repeats)], sizes, window_shards=16, seed=5)
    plan = Plan([Chapter(layout, 8)], sizes, global_batch=256, seed=5)
    plan.step(0)
    first_s, grown_mib = time.perf_counter() - began, peak_mib() - before_mib
    plan.step(plan.steps(FAR_EPOCHS))
    return Planned(first_s, grown_mib, time.perf_counter() - began - first_s)


def _sizes(samples: int) -> tuple[I64, I64]:
    """Widths and heights of about a megapixel, mostly 2:3 to 3:2, as an index holds them: uint32 [samples] each."""
    widths, heights = np.empty(samples, dtype=np.uint32), np.empty(samples, dtype=np.uint32)
    for start in range(0, samples, PIECE):
        random, piece = np.random.default_rng(start), slice(start, min(start + PIECE, samples))
        area, aspect = np.exp(random.normal(size=(2, piece.stop - start)) * [[0.4], [0.3]])
        widths[piece], heights[piece] = 1000 * np.sqrt(area * aspect), 1000 * np.sqrt(area / aspect)
    return widths, heights
