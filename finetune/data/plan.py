"""Which samples make up every step of a run: a pure function of (index, recipe, seed), for any step, in any order.

Shards are permuted anew every epoch and cut into windows; inside a window the samples of each bucket are shuffled. So
every bucket is one endless stream of draws, window after window and epoch after epoch, and its micro-batch j is the
draws [j·m, (j+1)·m) of that stream. A window emits, shuffled, the micro-batches whose last draw falls into it, and
steps are cut from the sequence of all emitted micro-batches.

Everything that locates a draw follows from cumulative counts per (window, bucket), so nothing has to be replayed to
find step 100,000, and what a window leaves over needs no bookkeeping: the stream goes on in the next one.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64
from finetune.data.hashing import U64, hash_counters, purpose_key, shuffled_order

PLAN_VERSION = 1
"""Raised whenever the same recipe, index and seed would give other steps; saved in every checkpoint."""


@dataclass(frozen=True)
class MicroBatch:
    """`m` draws of one bucket, trained together."""

    bucket: int
    rows: I64
    """Index row of every draw: int64 [m]."""
    samples: U64
    """Sample id of every draw: uint64 [m]."""
    epochs: I64
    """Epoch to which every draw belongs: int64 [m]."""
    first_slot: int
    """Place of the first draw among all draws of the step; the others follow it."""


class _Epoch(NamedTuple):
    """How one epoch lies in the streams."""

    shards: I64
    """The epoch's order of shards: int64 [shards]."""
    drawn: I64
    """Draws of every bucket before each window, counted from the epoch's start: int64 [windows + 1, buckets]."""
    emitted: I64
    """Micro-batches that all buckets have emitted before each window, since the run's start: int64 [windows + 1]."""


class Plan:
    """The steps of a run over one index."""

    def __init__(
        self,
        samples: U64,
        buckets: I64,
        sizes: I64,
        *,
        micro_batch: int,
        global_batch: int,
        window_shards: int,
        seed: int,
    ) -> None:
        """Prepare the counts from which every step follows.

        Args:
            samples: sample ids (shard number << 32 | ordinal) in index order: uint64 [samples].
            buckets: bucket of every sample: int64 [samples]; every bucket in use holds at least `micro_batch`.
            sizes: (width, height) of every bucket in pixels: int64 [buckets, 2].
            micro_batch: samples per forward pass.
            global_batch: samples per optimizer step over all ranks, a multiple of `micro_batch`.
            window_shards: shards per shuffling window.
            seed: the run's seed.
        """
        self.micro_batch = micro_batch
        self.micro_batches_per_step = global_batch // micro_batch
        self.samples_per_epoch = len(samples)
        self.sizes = sizes
        self._samples = samples
        self._window_shards = window_shards
        self._shard_key = purpose_key(seed, "shard order")
        self._sample_key = purpose_key(seed, "sample order")
        self._emission_key = purpose_key(seed, "micro-batch order")

        # A cell is what one shard holds of one bucket; `_cell_rows` lists rows cell after cell.
        shards = (samples >> np.uint64(32)).astype(np.int64)
        shard_count, bucket_count = int(shards[-1]) + 1, len(sizes)
        cells = shards * bucket_count + buckets
        counts = np.bincount(cells, minlength=shard_count * bucket_count)
        self._cell_rows = np.argsort(cells, kind="stable")
        self._cell_starts = np.concatenate([[0], np.cumsum(counts)])
        self._cell_counts = counts.reshape(shard_count, bucket_count)
        self.draws_per_epoch: I64 = self._cell_counts.sum(axis=0)

        self._epoch = lru_cache(maxsize=4)(self._layout)
        self._emission = lru_cache(maxsize=4)(self._emitted_in)
        self._window_rows = lru_cache(maxsize=8 * bucket_count)(self._rows_in)

    def steps(self, epochs: float) -> int:
        """Optimizer steps that draw `epochs` times as many samples as there are, rounded up."""
        return ceil(round(epochs * self.samples_per_epoch, 6) / (self.micro_batch * self.micro_batches_per_step))

    def epoch(self, step: int) -> float:
        """Samples drawn by the first `step` steps, in epochs."""
        return step * self.micro_batches_per_step * self.micro_batch / self.samples_per_epoch

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, counted from 0; those of the largest area first, so that ranks which take
        every W-th of them do equal work at the same time."""
        first = step * self.micro_batches_per_step
        located = [self._locate(first + i) for i in range(self.micro_batches_per_step)]
        located.sort(key=lambda pair: -int(self.sizes[pair[0]].prod()))
        return [self._micro_batch(bucket, j, i * self.micro_batch) for i, (bucket, j) in enumerate(located)]

    def draw(self, bucket: int, position: int) -> tuple[int, int]:
        """The (row, epoch) of one draw of a bucket's stream."""
        epoch, in_epoch = divmod(position, int(self.draws_per_epoch[bucket]))
        drawn = self._epoch(epoch).drawn[:, bucket]
        window = int(np.searchsorted(drawn, in_epoch, side="right")) - 1
        return int(self._window_rows(epoch, window, bucket)[in_epoch - drawn[window]]), epoch

    def _micro_batch(self, bucket: int, j: int, first_slot: int) -> MicroBatch:
        positions = range(j * self.micro_batch, (j + 1) * self.micro_batch)
        rows, epochs = np.array([self.draw(bucket, p) for p in positions], dtype=np.int64).T
        return MicroBatch(bucket, rows, self._samples[rows], epochs, first_slot)

    def _locate(self, place: int) -> tuple[int, int]:
        """The (bucket, j) of the micro-batch that is emitted at this place of the run's whole sequence."""
        epoch = place * self.micro_batch // self.samples_per_epoch
        while self._emitted_before(epoch + 1) <= place:
            epoch += 1
        emitted = self._epoch(epoch).emitted
        window = int(np.searchsorted(emitted, place, side="right")) - 1
        bucket, j = self._emission(epoch, window)[place - emitted[window]]
        return int(bucket), int(j)

    def _emitted_before(self, epoch: int) -> int:
        return int((epoch * self.draws_per_epoch // self.micro_batch).sum())

    def _layout(self, epoch: int) -> _Epoch:
        shard_count = len(self._cell_counts)
        order = shuffled_order(hash_counters(self._shard_key, epoch, np.arange(shard_count)))
        starts = np.arange(0, shard_count, self._window_shards)
        per_window = np.add.reduceat(self._cell_counts[order], starts, axis=0)
        drawn = np.concatenate([np.zeros_like(per_window[:1]), np.cumsum(per_window, axis=0)])
        emitted = ((epoch * self.draws_per_epoch + drawn) // self.micro_batch).sum(axis=1)
        return _Epoch(order, drawn, emitted)

    def _emitted_in(self, epoch: int, window: int) -> I64:
        """(bucket, j) of the micro-batches that a window emits, in their order: int64 [micro-batches, 2]."""
        drawn = epoch * self.draws_per_epoch + self._epoch(epoch).drawn[window : window + 2]
        first, end = drawn // self.micro_batch
        buckets = np.repeat(np.arange(len(first)), end - first)
        js = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
        return np.stack([buckets, js], axis=1)[shuffled_order(hash_counters(self._emission_key, buckets, js))]

    def _rows_in(self, epoch: int, window: int, bucket: int) -> I64:
        """The rows that a window draws of one bucket, in the order of the bucket's stream: int64 [draws]."""
        first = window * self._window_shards
        cells = self._epoch(epoch).shards[first : first + self._window_shards] * len(self.sizes) + bucket
        rows = np.concatenate([self._cell_rows[self._cell_starts[c] : self._cell_starts[c + 1]] for c in cells])
        return rows[shuffled_order(hash_counters(self._sample_key, epoch, self._samples[rows]))]
