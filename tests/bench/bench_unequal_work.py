"""What ranks lose by waiting for those of them that have larger pictures."""

import csv
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.data.buckets import I64, assign_buckets, bucket_sizes
from finetune.data.layout import Layout, SourceSamples
from finetune.data.plan import Chapter, Plan
from tests.bench.figure import Figure
from tests.bench.pictures import BUCKETS

SAMPLES, PER_SHARD = 100_000, 1000
STEPS = 30
LATENT_PX = 8
WORK = (21903.75, 4.963913e8, 4.670160e10)
"""FLOPs of SD1.5's forward and backward pass with a prompt of one chunk, a polynomial of the latents' area with the
highest power first, as finetune.monitor.flops counts them."""
SHAPES = ((2, 8, 16), (8, 8, 4), (64, 4, 1), (64, 8, 16), (512, 8, 4))
"""GPUs, micro-batch, micro-batches that each of them adds up; the first three are a global batch of 256."""


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """The share of a step that the ranks spend waiting, on average, for two GPUs.

    Args:
        work: unused; nothing is written.
        shared: the folder of real test data; photographs' sizes are read from it.
    """
    buckets = assign_buckets(*_sizes(shared), BUCKETS)
    lost = {shape: _lost(buckets, *shape) for shape in SHAPES}
    shuffled = _lost(buckets, *SHAPES[0], ordered=False)
    yield Figure(
        "data.unequal_work_share",
        lost[SHAPES[0]],
        "ratio",
        f"of a step, {len(np.unique(buckets))} buckets of {'photographs' if shared else 'synthetic sizes'}, by counted "
        f"FLOPs; in no order within the step {shuffled:.4f}; "
        + "; ".join(f"{gpus} GPUs × {count} × {size}: {lost[gpus, size, count]:.4f}" for gpus, size, count in SHAPES),
    )


def _lost(buckets: I64, gpus: int, micro_batch: int, accumulated: int, *, ordered: bool = True) -> float:
    """1 − mean / most of the ranks' work in a step, over some steps."""
    sizes = bucket_sizes(BUCKETS)
    layout = Layout(
        [SourceSamples(0, np.arange(0, SAMPLES + 1, PER_SHARD), buckets, Fraction(1))], sizes, window_shards=16, seed=5
    )
    plan = Plan([Chapter(layout, micro_batch)], sizes, global_batch=gpus * micro_batch * accumulated, seed=5)
    random, shares = np.random.default_rng(0), []
    for step in range(STEPS):
        work = np.polyval(WORK, [sizes[one.bucket].prod() / LATENT_PX**2 for one in plan.step(step)])
        ranks = (work if ordered else random.permutation(work)).reshape(accumulated, gpus).sum(axis=0)
        shares.append(1.0 - ranks.mean() / ranks.max())
    return float(np.mean(shares))


def _sizes(shared: Path | None) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Widths and heights: uint32 [samples] each."""
    random = np.random.default_rng(0)
    if shared is None:
        area, aspect = np.exp(random.normal(size=(2, SAMPLES)) * [[0.4], [0.3]])
        sides = 1000 * np.sqrt([area * aspect, area / aspect])
    else:
        with (shared / "photos" / "MANIFEST.csv").open(encoding="utf-8") as file:
            known = np.array([(int(row["width"]), int(row["height"])) for row in csv.DictReader(file)])
        sides = known[random.integers(len(known), size=SAMPLES)].T
    widths, heights = sides.astype(np.uint32)
    return widths, heights
