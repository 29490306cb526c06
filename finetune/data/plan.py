"""Which samples make up every step of a run: a pure function of (editions of the data, recipe, seed), for any step, in
any order.

Every bucket is one endless stream of draws, window after window and epoch after epoch, and its micro-batch j is the
draws [j·m, (j+1)·m) of that stream. A window emits, shuffled, the micro-batches whose last draw falls into it, and
steps are cut from the sequence of all emitted micro-batches. Everything that locates a draw follows from cumulative
counts per (window, bucket), so nothing has to be replayed to find step 100,000, and what a window leaves over needs no
bookkeeping: the stream goes on in the next one.

Where a new edition of the data begins, at an epoch's border, the streams of the one before are closed: its last window
also emits each bucket's remainder, filled up with further draws of the same bucket (repeats from FILL on).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64
from finetune.data.hashing import U64, hash_counters, purpose_key
from finetune.data.layout import Layout

PLAN_VERSION = 2
"""Raised whenever the same recipe, index and seed would give other steps; saved in every checkpoint."""
FILL = 1 << 20
"""Repeats from here on belong to draws that fill up a bucket's last micro-batch of an edition."""


class Draw(NamedTuple):
    """A sample's place in the run; every random choice for it is a function of (epoch, sample, repeat)."""

    sample: int
    epoch: int
    repeat: int


@dataclass(frozen=True)
class MicroBatch:
    """`m` draws of one bucket, trained together."""

    bucket: int
    """Row of the plan's `sizes`."""
    samples: U64
    """Sample id of every draw: uint64 [m]."""
    epochs: I64
    """Epoch to which every draw belongs: int64 [m]."""
    repeats: I64
    """Which draw of its sample in the epoch each one is, from 0 on: int64 [m]."""
    first_slot: int
    """Place of the first draw among all draws of the step; the others follow it."""
    window: tuple[int, int]
    """(epoch, window) that emits it."""

    @property
    def draws(self) -> list[Draw]:
        """All draws, in order."""
        columns = (self.samples.tolist(), self.epochs.tolist(), self.repeats.tolist())
        return [Draw(*values) for values in zip(*columns, strict=True)]


class Plan:
    """The steps of a run."""

    def __init__(
        self, layouts: Sequence[Layout], sizes: I64, *, micro_batch: int, global_batch: int, seed: int
    ) -> None:
        """Lay the editions one after the other.

        Args:
            layouts: the editions of the data, each from its `first_epoch` on; the first begins at epoch 0.
            sizes: (width, height) of every bucket in pixels: int64 [buckets, 2].
            micro_batch: samples per forward pass.
            global_batch: samples per optimizer step over all ranks, a multiple of `micro_batch`.
            seed: the run's seed.
        """
        self.micro_batch = micro_batch
        self.micro_batches_per_step = global_batch // micro_batch
        self.sizes = sizes
        self._layouts = layouts
        self._emission_key = purpose_key(seed, "micro-batch order")
        self._fill_key = purpose_key(seed, "fill")
        self._first_places = [0]
        for number in range(len(layouts) - 1):
            self._first_places.append(self._first_places[-1] + int(self._closed(number).sum()))
        self._emissions = lru_cache(maxsize=4)(self._emitted_before_windows)
        self._emission = lru_cache(maxsize=8)(self._emitted_in)

    @property
    def buckets(self) -> I64:
        """The buckets that are in use in any edition: int64 [buckets]."""
        return np.unique(np.concatenate([layout.used for layout in self._layouts]))

    def draws(self, epoch: int) -> int:
        """Draws of all epochs before `epoch`, with those that fill up closed streams."""
        number = self._edition(epoch)
        return self._first_places[number] * self.micro_batch + int(self._layouts[number].through(epoch).sum())

    def steps(self, epochs: float) -> int:
        """Optimizer steps that a run of so many epochs takes, rounded up."""
        whole = int(epochs)
        draws = self.draws(whole)
        if epochs > whole:
            draws += round((epochs - whole) * (self.draws(whole + 1) - draws), 6)  # type: ignore[assignment]
        return ceil(draws / (self.micro_batch * self.micro_batches_per_step))

    def epoch(self, step: int) -> float:
        """Epochs that the first `step` steps draw, with fractions."""
        drawn = step * self.micro_batches_per_step * self.micro_batch
        whole = _last(lambda epoch: self.draws(epoch) <= drawn, drawn // max(self.draws(1), 1))
        before = self.draws(whole)
        return whole + (drawn - before) / (self.draws(whole + 1) - before)

    def epoch_of_step(self, step: int) -> int:
        """The epoch whose windows emit a step's first micro-batch."""
        return self._locate(step * self.micro_batches_per_step)[1]

    def next_border(self, step: int) -> int:
        """The first epoch of which nothing has been emitted before a step."""
        epoch = self.epoch_of_step(step)
        return epoch + (self._emitted_before(epoch) < step * self.micro_batches_per_step)

    def first_step(self, epoch: int) -> int:
        """The step that holds the first micro-batch which an epoch emits."""
        return self._emitted_before(epoch) // self.micro_batches_per_step

    def emitted(self, epoch: int) -> I64:
        """Micro-batches of every bucket that the windows of an epoch emit: int64 [all buckets]."""
        number = self._edition(epoch)
        layout = self._layouts[number]
        before, after = (layout.through(e) // self.micro_batch for e in (epoch, epoch + 1))
        return self._spread(layout, (self._closed(number) if self._is_last_epoch(number, epoch) else after) - before)

    def waiting(self, epoch: int) -> I64:
        """Draws of every bucket that wait, when an epoch is over, for the next to fill their micro-batch: int64 [all
        buckets]."""
        number = self._edition(epoch)
        layout = self._layouts[number]
        left = layout.through(epoch + 1) % self.micro_batch
        return self._spread(layout, np.zeros_like(left) if self._is_last_epoch(number, epoch) else left)

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, counted from 0; those of the largest area first, so that ranks which take
        every W-th of them do equal work at the same time."""
        first = step * self.micro_batches_per_step
        located = [self._emitted(first + i) for i in range(self.micro_batches_per_step)]
        located.sort(key=lambda found: -int(self.sizes[found[0].used[found[2]]].prod()))
        return [self._micro_batch(*found, i * self.micro_batch) for i, found in enumerate(located)]

    def windows(self, step: int) -> Iterator[tuple[int, int]]:
        """The (epoch, window) that emit a step and all that follows, without end."""
        number, epoch, window = self._locate(step * self.micro_batches_per_step)
        while True:
            last = len(self._layouts[number].epoch(epoch).drawn) - 1
            yield from ((epoch, w) for w in range(window, last))
            epoch, window = epoch + 1, 0
            number = self._edition(epoch)

    def window_count(self, epoch: int) -> int:
        """Windows of an epoch."""
        return len(self._layouts[self._edition(epoch)].epoch(epoch).drawn) - 1

    def shards_in(self, epoch: int, window: int) -> set[tuple[int, int]]:
        """The (source, shard) that a window draws from."""
        return self._layouts[self._edition(epoch)].shards_in(epoch, window)

    def neighbour(self, micro_batch: MicroBatch, bits: int, *, near: bool) -> Draw:
        """Another draw of a micro-batch's bucket and edition, chosen by 64 random bits: near (from the window that
        emits it, whose shards are at hand) where that holds several, or from the window's whole epoch, or from the
        epochs before where that holds none."""
        epoch, window = micro_batch.window
        layout = self._layouts[self._edition(epoch)]
        bucket = int(np.searchsorted(layout.used, micro_batch.bucket))
        start = int(layout.through(epoch)[bucket])
        drawn = layout.epoch(epoch).drawn[:, bucket]
        first, end = (start + int(drawn[window]), start + int(drawn[window + 1])) if near else (0, 0)
        if end - first < 2:
            first, end = start, start + int(drawn[-1])
        if end == first:
            first, end = 0, start
        return self._draw(layout, bucket, first + bits % (end - first))

    def _spread(self, layout: Layout, values: I64) -> I64:
        """Values of a layout's buckets as values of all buckets."""
        spread = np.zeros(len(self.sizes), dtype=np.int64)
        spread[layout.used] = values
        return spread

    def _edition(self, epoch: int) -> int:
        return sum(layout.first_epoch <= epoch for layout in self._layouts[1:])

    def _is_last_epoch(self, number: int, epoch: int) -> bool:
        return number + 1 < len(self._layouts) and epoch + 1 == self._layouts[number + 1].first_epoch

    def _closed(self, number: int) -> I64:
        """Micro-batches of every bucket of an edition that another one follows: int64 [buckets]."""
        return -(-self._layouts[number].through(self._layouts[number + 1].first_epoch) // self.micro_batch)

    def _emitted_before(self, epoch: int) -> int:
        number = self._edition(epoch)
        return self._first_places[number] + int((self._layouts[number].through(epoch) // self.micro_batch).sum())

    def _locate(self, place: int) -> tuple[int, int, int]:
        """The (edition, epoch, window) that emits the micro-batch at this place of the run's whole sequence."""
        guess = place // max(self._emitted_before(1), 1)
        epoch = _last(lambda epoch: self._emitted_before(epoch) <= place, guess)
        number = self._edition(epoch)
        return number, epoch, int(np.searchsorted(self._emissions(number, epoch), place, side="right")) - 1

    def _emitted_before_windows(self, number: int, epoch: int) -> I64:
        """Micro-batches emitted before each window of an epoch, since the run's start: int64 [windows + 1]."""
        layout = self._layouts[number]
        counts = (layout.through(epoch) + layout.epoch(epoch).drawn) // self.micro_batch
        if self._is_last_epoch(number, epoch):
            counts[-1] = self._closed(number)
        emitted: I64 = self._first_places[number] + counts.sum(axis=1)
        return emitted

    def _emitted(self, place: int) -> tuple[Layout, tuple[int, int], int, int]:
        """(layout, (epoch, window), bucket as a place in `used`, j) of the micro-batch emitted at a place."""
        number, epoch, window = self._locate(place)
        bucket, j = self._emission(number, epoch, window)[place - int(self._emissions(number, epoch)[window])]
        return self._layouts[number], (epoch, window), int(bucket), int(j)

    def _emitted_in(self, number: int, epoch: int, window: int) -> I64:
        """(bucket, j) of the micro-batches that a window emits, in their order: int64 [micro-batches, 2]."""
        layout = self._layouts[number]
        drawn = layout.epoch(epoch).drawn
        first, full = (layout.through(epoch) + drawn[window : window + 2]) // self.micro_batch
        closes = self._is_last_epoch(number, epoch) and window == len(drawn) - 2
        end = self._closed(number) if closes else full
        buckets = np.repeat(np.arange(len(first)), end - first)
        js = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
        hashes = hash_counters(self._emission_key, layout.first_epoch, layout.used[buckets], js)
        # What fills up a stream comes last, so that closing an edition moves nothing that was emitted before.
        return np.stack([buckets, js], axis=1)[np.lexsort((hashes, js >= full[buckets]))]

    def _micro_batch(self, layout: Layout, window: tuple[int, int], bucket: int, j: int, first_slot: int) -> MicroBatch:
        first = j * self.micro_batch
        draws = [self._draw(layout, bucket, first + i) for i in range(self.micro_batch)]
        samples, epochs, repeats = zip(*draws, strict=True)
        return MicroBatch(
            bucket=int(layout.used[bucket]),
            samples=np.array(samples, dtype=np.uint64),
            epochs=np.array(epochs, dtype=np.int64),
            repeats=np.array(repeats, dtype=np.int64),
            first_slot=first_slot,
            window=window,
        )

    def _draw(self, layout: Layout, bucket: int, position: int) -> Draw:
        """The draw at a position of a bucket's stream; beyond the end of a closed one, a further draw of its last
        epochs' samples."""
        number = self._layouts.index(layout)
        if number + 1 < len(self._layouts):
            end = int(layout.through(self._layouts[number + 1].first_epoch)[bucket])
            if position >= end:
                other = int(hash_counters(self._fill_key, layout.first_epoch, int(layout.used[bucket]), position)) % end
                return self._draw(layout, bucket, other)._replace(repeat=FILL + position - end)
        per_epoch = max(int(layout.through(layout.first_epoch + 1)[bucket]), 1)
        epoch = _last(
            lambda epoch: epoch <= layout.first_epoch or int(layout.through(epoch)[bucket]) <= position,
            layout.first_epoch + position // per_epoch,
        )
        in_epoch = position - int(layout.through(epoch)[bucket])
        drawn = layout.epoch(epoch).drawn[:, bucket]
        window = int(np.searchsorted(drawn, in_epoch, side="right")) - 1
        draws = layout.window(epoch, window)
        at = int(draws.starts[bucket]) + in_epoch - int(drawn[window])
        return Draw(int(draws.samples[at]), epoch, int(draws.repeats[at]))


def _last(reached: Callable[[int], bool], guess: int) -> int:
    """The last epoch for which `reached` holds, which it does up to there and nowhere after; looked for in strides that
    double from a guess on, as each look may count all samples."""
    stride = 1
    if reached(guess):
        low = guess
        while reached(low + stride):
            low, stride = low + stride, 2 * stride
        high = low + stride
    else:
        high = guess
        while high - stride > 0 and not reached(high - stride):
            high, stride = high - stride, 2 * stride
        low = max(high - stride, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(middle) else (low, middle)
    return low
