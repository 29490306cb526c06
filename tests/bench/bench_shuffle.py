"""How well windows of shards shuffle, next to a full shuffle of all samples."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64, bucket_sizes
from finetune.data.config import DataConfig
from finetune.data.layout import Layout, SourceSamples
from finetune.data.samples import rows_of_ids
from tests.bench.figure import Figure
from tests.bench.pictures import BUCKETS

SHARDS, SAMPLES = 1000, 3300
BATCH = 256
WINDOWS = (4, 16, 64)


class Mix(NamedTuple):
    """How one order of the samples relates to the next epoch's."""

    moved: float
    """Mean distance between a sample's places in two epochs, as a share of all samples."""
    shards: float
    """Mean number of shards that a batch comes from."""
    together: float
    """Share of the pairs of neighbours in one epoch that share a batch in the next."""


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """How far samples move between epochs, and from how many shards a batch comes.

    Args:
        work: unused; nothing is written.
        shared: unused; the samples are rows of an index only.
    """
    random = np.random.default_rng(0)
    full = _mix(*(random.permutation(SHARDS * SAMPLES) for _ in range(2)))
    mixes = {window: _mix(*_orders(window)) for window in WINDOWS}
    ours = mixes[DataConfig.window_shards]
    where = f"windows of {DataConfig.window_shards} of {SHARDS} shards of {SAMPLES}"
    yield Figure(
        "data.shuffle_moved_share",
        ours.moved / full.moved,
        "ratio",
        f"mean distance of a sample's places in two epochs / that under a full shuffle, {where}; "
        + "; ".join(f"window {window}: {mix.moved / full.moved:.3f}" for window, mix in mixes.items()),
    )
    yield Figure(
        "data.shuffle_mix",
        ours.shards / full.shards,
        "ratio",
        f"shards that a batch of {BATCH} comes from / {full.shards:.0f} under a full shuffle, {where}; "
        + "; ".join(f"window {window}: {mix.shards:.1f} shards" for window, mix in mixes.items())
        + "; neighbours that share a batch again an epoch later: "
        + ", ".join(f"{mix.together:.4%} (window {window})" for window, mix in mixes.items())
        + f", {full.together:.4%} under a full shuffle",
    )


def _orders(window: int) -> list[I64]:
    """The rows of two epochs in the order in which they are drawn."""
    first_rows = np.arange(SHARDS + 1) * SAMPLES
    buckets = np.zeros(SHARDS * SAMPLES, dtype=np.uint16)
    sources = [SourceSamples(0, first_rows, buckets, Fraction(1))]
    layout = Layout(sources, bucket_sizes(BUCKETS), window_shards=window, seed=5)
    windows = range(-(-SHARDS // window))
    return [
        rows_of_ids(np.concatenate([layout.window(epoch, w).samples for w in windows]), first_rows) for epoch in (0, 1)
    ]


def _mix(order: I64, later: I64) -> Mix:
    places = np.empty((2, len(order)), dtype=np.int64)
    places[0, order] = places[1, later] = np.arange(len(order))
    batches = np.sort(order[: len(order) // BATCH * BATCH].reshape(-1, BATCH) // SAMPLES, axis=1)
    again = places[1, order[::2]] // BATCH == places[1, order[1::2]] // BATCH
    return Mix(
        float(np.abs(places[0] - places[1]).mean() / len(order)),
        float(1 + (np.diff(batches, axis=1) > 0).sum(axis=1).mean()),
        float(again.mean()),
    )
