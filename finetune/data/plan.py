"""Which samples make up every step of a run: a pure function of (chapters, recipe, seed), for any step, in any order.

Every bucket is one endless stream of draws, window after window and epoch after epoch, and its micro-batch j is the
draws [j·m, (j+1)·m) of that stream. A window emits, shuffled, the micro-batches whose last draw falls into it, and
steps are cut from the sequence of all emitted micro-batches. Everything that locates a draw follows from cumulative
counts per (window, bucket), so nothing has to be replayed to find step 100,000, and what a window leaves over needs no
bookkeeping: the stream goes on in the next one.

A chapter is the run from an epoch on while neither the data nor its shape changes. Where the next one begins, the
streams of the one before are closed: its last window also emits each bucket's remainder, filled up with further draws
of the same bucket (repeats from FILL on), and the largest bucket fills up the last step, so that no step holds samples
of two chapters.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64, NONE
from finetune.data.hashing import U64, hash_counters, purpose_key
from finetune.data.layout import Layout

PLAN_VERSION = 3
"""Raised whenever the same recipe, index and seed would give other steps; saved in every checkpoint."""
FILL = 1 << 20
"""Repeats from here on belong to draws that fill up a chapter's last micro-batches."""


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


@dataclass(frozen=True)
class Chapter:
    """The run from its layout's first epoch on, up to where the next chapter begins."""

    layout: Layout
    micro_batch: int
    """Samples per forward pass."""
    first_bucket: int = 0
    """Row of the plan's `sizes` at which the layout's own begin."""

    @property
    def buckets(self) -> I64:
        """The buckets in use, as rows of the plan's `sizes`: int64 [buckets]."""
        return self.first_bucket + self.layout.used

    def bucket(self, sample: int) -> int | None:
        """The bucket of a sample, as a row of the plan's `sizes`; None where it is left out."""
        bucket = self.layout.bucket(sample)
        return None if bucket == NONE else self.first_bucket + bucket


class Plan:
    """The steps of a run."""

    def __init__(self, chapters: Sequence[Chapter], sizes: I64, *, global_batch: int, seed: int) -> None:
        """Lay the chapters one after the other.

        Args:
            chapters: the first begins at epoch 0.
            sizes: (width, height) of every bucket in pixels: int64 [buckets, 2].
            global_batch: samples per optimizer step over all ranks, a multiple of every chapter's `micro_batch`.
            seed: the run's seed.
        """
        self.global_batch = global_batch
        self.sizes = sizes
        self._chapters = chapters
        self._emission_key = purpose_key(seed, "micro-batch order")
        self._fill_key = purpose_key(seed, "fill")
        self._first_places, self._first_steps = [0], [0]
        for number in range(len(chapters) - 1):
            closed = int(self._closed(number).sum())
            self._first_places.append(self._first_places[-1] + closed)
            self._first_steps.append(self._first_steps[-1] + closed // self._per_step(number))
        self._emissions = lru_cache(maxsize=4)(self._emitted_before_windows)
        self._emission = lru_cache(maxsize=8)(self._emitted_in)

    def micro_batch(self, step: int) -> int:
        """Samples of every micro-batch of a step, of which it has `global_batch` divided by this."""
        return self._chapters[self._chapter_of_step(step)].micro_batch

    def chapter(self, epoch: int) -> Chapter:
        """The chapter to which an epoch belongs."""
        return self._chapters[self._chapter(epoch)]

    def chapters(self, epoch: int) -> Sequence[Chapter]:
        """The chapter to which an epoch belongs, and all that follow."""
        return self._chapters[self._chapter(epoch) :]

    def largest(self, step: int) -> tuple[int, int, int]:
        """The (micro-batch, width, height) of the most pixels that any step from this one on may have."""
        shapes = [
            (chapter.micro_batch, int(width), int(height))
            for chapter in self._chapters[self._chapter_of_step(step) :]
            for width, height in self.sizes[chapter.buckets]
        ]
        return max(shapes, key=prod)

    def settled(self, step: int) -> list[int]:
        """The epochs at which those chapters begin that can no longer begin elsewhere when so many steps are done."""
        place = self._place(step)
        return [
            after.layout.first_epoch
            for number, after in enumerate(self._chapters[1:])
            if place > self._first_places[number] + int(self._full(number, after.layout.first_epoch).sum())
        ]

    def draws(self, epoch: int) -> int:
        """Draws of all epochs before `epoch`, with those that fill up closed streams."""
        number = self._chapter(epoch)
        return self._first_steps[number] * self.global_batch + int(self._layout(number).through(epoch).sum())

    def steps(self, epochs: float) -> int:
        """Optimizer steps that a run of so many epochs takes, rounded up."""
        whole = int(epochs)
        draws = self.draws(whole)
        if epochs > whole:
            draws += round((epochs - whole) * (self.draws(whole + 1) - draws), 6)  # type: ignore[assignment]
        return ceil(draws / self.global_batch)

    def epoch(self, step: int) -> float:
        """Epochs that the first `step` steps draw, with fractions."""
        drawn = step * self.global_batch
        whole = _last(lambda epoch: self.draws(epoch) <= drawn, drawn // max(self.draws(1), 1))
        before = self.draws(whole)
        return whole + (drawn - before) / (self.draws(whole + 1) - before)

    def epoch_of_step(self, step: int) -> int:
        """The epoch whose windows emit a step's first micro-batch."""
        return self._locate(self._place(step))[1]

    def next_border(self, step: int) -> int:
        """The first epoch of which nothing has been emitted before a step."""
        epoch = self.epoch_of_step(step)
        return epoch + (self._emitted_before(epoch) < self._place(step))

    def first_step(self, epoch: int) -> int:
        """The step that holds the first micro-batch which an epoch emits."""
        number = self._chapter(epoch)
        emitted = self._emitted_before(epoch) - self._first_places[number]
        return self._first_steps[number] + emitted // self._per_step(number)

    def emitted(self, epoch: int) -> I64:
        """Micro-batches of every bucket that the windows of an epoch emit: int64 [all buckets]."""
        number = self._chapter(epoch)
        after = self._closed(number) if self._is_last_epoch(number, epoch) else self._full(number, epoch + 1)
        return self._spread(number, after - self._full(number, epoch))

    def waiting(self, epoch: int) -> I64:
        """Draws of every bucket that wait, when an epoch is over, for the next to fill their micro-batch: int64 [all
        buckets]."""
        number = self._chapter(epoch)
        left = self._layout(number).through(epoch + 1) % self._chapters[number].micro_batch
        return self._spread(number, np.zeros_like(left) if self._is_last_epoch(number, epoch) else left)

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, counted from 0; those of the largest area first, so that ranks which take
        every W-th of them do equal work at the same time."""
        number, first = self._chapter_of_step(step), self._place(step)
        chapter = self._chapters[number]
        located = [self._emitted(first + i) for i in range(self._per_step(number))]
        located.sort(key=lambda found: -int(self.sizes[chapter.buckets[found[1]]].prod()))
        return [self._micro_batch(number, *found, i * chapter.micro_batch) for i, found in enumerate(located)]

    def windows(self, step: int) -> Iterator[tuple[int, int]]:
        """The (epoch, window) that emit a step and all that follows, without end."""
        _, epoch, window = self._locate(self._place(step))
        while True:
            yield from ((epoch, w) for w in range(window, self.window_count(epoch)))
            epoch, window = epoch + 1, 0

    def after_window(self, step: int) -> int:
        """The first step that holds no micro-batch of the window which emits a step's last one, nor of any before."""
        number = self._chapter_of_step(step)
        _, epoch, window = self._locate(self._place(step) + self._per_step(number) - 1)
        emitted = int(self._emissions(number, epoch)[window + 1]) - self._first_places[number]
        return self._first_steps[number] - -emitted // self._per_step(number)

    def window_count(self, epoch: int) -> int:
        """Windows of an epoch."""
        return len(self._layout(self._chapter(epoch)).epoch(epoch).drawn) - 1

    def shards_in(self, epoch: int, window: int) -> set[tuple[int, int]]:
        """The (source, shard) that a window draws from."""
        return self._layout(self._chapter(epoch)).shards_in(epoch, window)

    def neighbour(self, micro_batch: MicroBatch, bits: int, *, near: bool) -> Draw:
        """Another draw of a micro-batch's bucket and chapter, chosen by 64 random bits: near (from the window that
        emits it, whose shards are at hand) where that holds several, or from the window's whole epoch, or from the
        epochs before where that holds none."""
        epoch, window = micro_batch.window
        number = self._chapter(epoch)
        layout = self._layout(number)
        bucket = int(np.searchsorted(self._chapters[number].buckets, micro_batch.bucket))
        start = int(layout.through(epoch)[bucket])
        drawn = layout.epoch(epoch).drawn[:, bucket]
        first, end = (start + int(drawn[window]), start + int(drawn[window + 1])) if near else (0, 0)
        if end - first < 2:
            first, end = start, start + int(drawn[-1])
        if end == first:
            first, end = 0, start
        return self._draw(number, bucket, first + bits % (end - first))

    def _layout(self, number: int) -> Layout:
        return self._chapters[number].layout

    def _per_step(self, number: int) -> int:
        """Micro-batches of every step of a chapter."""
        return self.global_batch // self._chapters[number].micro_batch

    def _spread(self, number: int, values: I64) -> I64:
        """Values of a chapter's buckets as values of all buckets."""
        spread = np.zeros(len(self.sizes), dtype=np.int64)
        spread[self._chapters[number].buckets] = values
        return spread

    def _chapter(self, epoch: int) -> int:
        return sum(chapter.layout.first_epoch <= epoch for chapter in self._chapters[1:])

    def _chapter_of_step(self, step: int) -> int:
        return bisect_right(self._first_steps, step) - 1

    def _place(self, step: int) -> int:
        """The place of a step's first micro-batch in the run's whole sequence."""
        number = self._chapter_of_step(step)
        return self._first_places[number] + (step - self._first_steps[number]) * self._per_step(number)

    def _is_last_epoch(self, number: int, epoch: int) -> bool:
        return number + 1 < len(self._chapters) and epoch + 1 == self._layout(number + 1).first_epoch

    def _full(self, number: int, epoch: int) -> I64:
        """Micro-batches of every bucket of a chapter that fill up before an epoch: int64 [buckets]."""
        return self._layout(number).through(epoch) // self._chapters[number].micro_batch

    def _closed(self, number: int) -> I64:
        """Micro-batches of every bucket of a chapter that another one follows, in whole steps: int64 [buckets]."""
        draws = self._layout(number).through(self._layout(number + 1).first_epoch)
        closed: I64 = -(-draws // self._chapters[number].micro_batch)
        closed[np.argmax(draws)] += -closed.sum() % self._per_step(number)
        return closed

    def _emitted_before(self, epoch: int) -> int:
        number = self._chapter(epoch)
        return self._first_places[number] + int(self._full(number, epoch).sum())

    def _locate(self, place: int) -> tuple[int, int, int]:
        """The (chapter, epoch, window) that emits the micro-batch at this place of the run's whole sequence."""
        guess = place // max(self._emitted_before(1), 1)
        epoch = _last(lambda epoch: self._emitted_before(epoch) <= place, guess)
        number = self._chapter(epoch)
        return number, epoch, int(np.searchsorted(self._emissions(number, epoch), place, side="right")) - 1

    def _emitted_before_windows(self, number: int, epoch: int) -> I64:
        """Micro-batches emitted before each window of an epoch, since the run's start: int64 [windows + 1]."""
        layout = self._layout(number)
        counts = (layout.through(epoch) + layout.epoch(epoch).drawn) // self._chapters[number].micro_batch
        if self._is_last_epoch(number, epoch):
            counts[-1] = self._closed(number)
        emitted: I64 = self._first_places[number] + counts.sum(axis=1)
        return emitted

    def _emitted(self, place: int) -> tuple[tuple[int, int], int, int]:
        """((epoch, window), bucket as a place in `used`, j) of the micro-batch emitted at a place."""
        number, epoch, window = self._locate(place)
        bucket, j = self._emission(number, epoch, window)[place - int(self._emissions(number, epoch)[window])]
        return (epoch, window), int(bucket), int(j)

    def _emitted_in(self, number: int, epoch: int, window: int) -> I64:
        """(bucket, j) of the micro-batches that a window emits, in their order: int64 [micro-batches, 2]."""
        layout = self._layout(number)
        drawn = layout.epoch(epoch).drawn
        first, full = (layout.through(epoch) + drawn[window : window + 2]) // self._chapters[number].micro_batch
        closes = self._is_last_epoch(number, epoch) and window == len(drawn) - 2
        end = self._closed(number) if closes else full
        buckets = np.repeat(np.arange(len(first)), end - first)
        js = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
        hashes = hash_counters(self._emission_key, layout.first_epoch, layout.used[buckets], js)
        # What fills up a stream comes last, so that closing a chapter moves nothing that was emitted before.
        return np.stack([buckets, js], axis=1)[np.lexsort((hashes, js >= full[buckets]))]

    def _micro_batch(self, number: int, window: tuple[int, int], bucket: int, j: int, first_slot: int) -> MicroBatch:
        chapter = self._chapters[number]
        first = j * chapter.micro_batch
        draws = [self._draw(number, bucket, first + i) for i in range(chapter.micro_batch)]
        samples, epochs, repeats = zip(*draws, strict=True)
        return MicroBatch(
            bucket=int(chapter.buckets[bucket]),
            samples=np.array(samples, dtype=np.uint64),
            epochs=np.array(epochs, dtype=np.int64),
            repeats=np.array(repeats, dtype=np.int64),
            first_slot=first_slot,
            window=window,
        )

    def _draw(self, number: int, bucket: int, position: int) -> Draw:
        """The draw at a position of a bucket's stream; beyond the end of a closed one, a further draw of its last
        epochs' samples."""
        layout = self._layout(number)
        if number + 1 < len(self._chapters):
            end = int(layout.through(self._layout(number + 1).first_epoch)[bucket])
            if position >= end:
                other = int(hash_counters(self._fill_key, layout.first_epoch, int(layout.used[bucket]), position)) % end
                return self._draw(number, bucket, other)._replace(repeat=FILL + position - end)
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
