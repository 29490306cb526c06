"""One edition of the data, epoch by epoch: which samples each shuffling window draws, and in which order.

A source's epoch is a sequence of units: a unit is one pass over one shard, and a source with `repeats` 3 makes three
passes, each with its shards in an order of its own. The source with the most draws sets the windows, so many whole
units each; every other source is cut where the same share of its own draws is reached, so that all windows mix the
sources in proportion. Inside a window the draws of each bucket are shuffled.

Counts of draws per (window, bucket) follow without looking at single samples, but for the few units that a border
cuts, which is why any window of any epoch is found at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.data.buckets import I64, NONE, U16
from finetune.data.hashing import U64, hash_counters, purpose_key, shuffled_order
from finetune.data.samples import ids_of_rows, place_of

PIECE = 1 << 20
WINDOWS_KEPT = 32


class HeldOut(NamedTuple):
    """The samples of a source that are never trained."""

    rows: I64
    buckets: U16
    """The bucket that each would be in, or NONE."""


@dataclass(frozen=True)
class SourceSamples:
    """The samples of one source."""

    number: int
    first_rows: I64
    """Row at which each shard begins, and the number of rows: int64 [shards + 1]."""
    buckets: U16
    """Bucket of every row, NONE for those that are left out: uint16 [rows]."""
    repeats: Fraction
    """Draws of each sample per epoch."""
    times: npt.NDArray[Any] | None = None
    """Factor on `repeats` of every row: integers [rows]; None where all are 1."""
    held_out: HeldOut | None = None
    """Rows whose `buckets` are NONE because they are kept for validation."""


class Window(NamedTuple):
    """The draws of one window, bucket after bucket."""

    samples: npt.NDArray[np.uint64]
    """Sample ids: uint64 [draws]."""
    repeats: I64
    """Which draw of its sample in the epoch each one is: int64 [draws]."""
    starts: I64
    """Where each bucket begins, and the number of draws: int64 [buckets + 1]."""


class _Units(NamedTuple):
    """One source's epoch."""

    passes: I64
    shards: I64
    """Of every unit: int64 [units]."""
    drawn: I64
    """Draws of every bucket before each unit: int64 [units + 1, buckets]."""


class _Epoch(NamedTuple):
    units: list[_Units]
    """Per source."""
    cuts: list[list[tuple[int, int]]]
    """Per source, (unit, draws into it) at each border between windows: windows + 1 pairs."""
    drawn: I64
    """Draws of every bucket before each window: int64 [windows + 1, buckets]."""


class Layout:
    """The draws of an edition of the data, which holds from `first_epoch` on."""

    def __init__(
        self, sources: list[SourceSamples], sizes: I64, *, window_shards: int, seed: int, first_epoch: int = 0
    ) -> None:
        """Number the buckets in use and prepare the counts.

        Args:
            sizes: (width, height) of every bucket in pixels: int64 [all buckets, 2].
            window_shards: units of the largest source per window.
        """
        self.first_epoch = first_epoch
        used = np.zeros(NONE + 1, dtype=bool)
        for source in sources:
            used[source.buckets] = True
        used[NONE] = False
        self.used: I64 = np.flatnonzero(used)
        """Buckets that hold samples, as rows of `sizes`: int64 [buckets]; elsewhere here, buckets are places in it."""
        self.sizes: I64 = sizes[self.used]
        self.sources = sources
        """What it draws from."""
        self._place = np.full(NONE + 1, len(self.used), dtype=np.uint16)
        self._place[self.used] = np.arange(len(self.used))
        self._window_shards = window_shards
        self._keys = {name: purpose_key(seed, name) for name in ("shard order", "sample order", "cut order", "repeats")}
        self._drawn_in = lru_cache(maxsize=64)(self._count_draws)
        self._passes = lru_cache(maxsize=8)(self._count_passes)
        self.through = lru_cache(maxsize=64)(self._drawn_through)
        self.epoch = lru_cache(maxsize=4)(self._lay_out)
        self.window = lru_cache(maxsize=WINDOWS_KEPT)(self._draws_in)

    def held_out(self) -> tuple[U64, I64]:
        """The samples that are never trained, but lie in buckets that others are trained in: ids uint64 [samples] and
        buckets, as rows of all sizes, int64 [samples]."""
        ids, buckets = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        for source in self.sources:
            if source.held_out is not None:
                ids.append(ids_of_rows(source.held_out.rows, source.number, source.first_rows))
                buckets.append(source.held_out.buckets.astype(np.int64))
        everything, places = np.concatenate(ids), np.concatenate(buckets)
        usable = np.isin(places, self.used)
        return everything[usable], places[usable]

    def bucket(self, sample: int) -> int:
        """The bucket of a sample, as a row of all sizes; NONE where it is left out."""
        place = place_of(sample)
        source = next(source for source in self.sources if source.number == place.source)
        return int(source.buckets[int(source.first_rows[place.shard]) + place.ordinal])

    def shards_in(self, epoch: int, window: int) -> set[tuple[int, int]]:
        """The (source, shard) that a window draws from."""
        laid = self.epoch(epoch)
        found: set[tuple[int, int]] = set()
        for source, units, cuts in zip(self.sources, laid.units, laid.cuts, strict=True):
            (first, _), (last, into) = cuts[window : window + 2]
            found |= {(source.number, int(shard)) for shard in units.shards[first : last + (into > 0)]}
        return found

    def _drawn_through(self, epoch: int) -> I64:
        """Draws of every bucket from the first epoch of the edition up to the start of `epoch`: int64 [buckets].

        After as many epochs as the repeats' denominator the draws come again, so that only a rest has to be counted.
        """
        total = np.zeros(len(self.used), dtype=np.int64)
        for i, source in enumerate(self.sources):
            cycle = source.repeats.denominator
            cycles, rest = divmod(epoch - self.first_epoch, cycle)
            total += cycles * self._drawn_in(i, cycle) + self._drawn_in(i, rest)
        return total

    def _count_draws(self, i: int, epochs: int) -> I64:
        """Draws of every bucket by a source in the first so many epochs of the edition: int64 [buckets]."""
        source = self.sources[i]
        total = np.zeros(len(self.used), dtype=np.int64)
        for rows in self._pieces(source) if epochs else ():
            draws = self._draws(source, rows, self.first_epoch, self.first_epoch + epochs)
            counts = np.bincount(self._place[source.buckets[rows]], draws, minlength=len(self.used) + 1)
            total += np.rint(counts[:-1]).astype(np.int64)
        return total

    def _pieces(self, source: SourceSamples) -> Iterator[I64]:
        """A source's rows, in pieces, so that memory stays flat for 100 million samples."""
        for start in range(0, len(source.buckets), PIECE):
            yield np.arange(start, min(start + PIECE, len(source.buckets)))

    def _draws(self, source: SourceSamples, rows: I64, first: int, end: int) -> I64:
        """How often the epochs [first, end) draw each of some rows together: int64 [rows].

        floor(end·r + u) − floor(first·r + u) with r = repeats and u = hash / denominator, in integers: it telescopes,
        so that over the epochs no sample gets more than its share.
        """
        per_epoch, denominator = source.repeats.numerator, source.repeats.denominator
        amounts = per_epoch * (source.times[rows].astype(np.int64) if source.times is not None else np.ones_like(rows))
        if denominator == 1:
            return amounts * (end - first)
        ids = ids_of_rows(rows, source.number, source.first_rows)
        phase = (hash_counters(self._keys["repeats"], ids) % np.uint64(denominator)).astype(np.int64)
        draws: I64 = (end * amounts + phase) // denominator - (first * amounts + phase) // denominator
        return draws

    def _count_passes(self, i: int, epoch: int) -> I64:
        """Draws that each pass of a source makes from every shard and bucket in an epoch: int64 [passes, shards,
        buckets]."""
        source = self.sources[i]
        shards, buckets = len(source.first_rows) - 1, len(self.used) + 1
        most = int(source.times.max()) if source.times is not None else 1
        passes = -(-source.repeats.numerator * most // source.repeats.denominator)
        counts = np.zeros((passes, shards, buckets), dtype=np.int64)
        for rows in self._pieces(source):
            draws = self._draws(source, rows, epoch, epoch + 1)
            row_shards = np.searchsorted(source.first_rows, rows, side="right") - 1
            first, last = int(row_shards[0]), int(row_shards[-1])
            cells = (row_shards - first) * buckets + self._place[source.buckets[rows]]
            for number in range(passes):
                found = np.bincount(cells[draws > number], minlength=(last - first + 1) * buckets)
                counts[number, first : last + 1] += found.reshape(-1, buckets)
        return counts[:, :, :-1]

    def _lay_out(self, epoch: int) -> _Epoch:
        units = [self._units(i, epoch) for i in range(len(self.sources))]
        totals = [u.drawn.sum(axis=1) for u in units]  # draws before each unit
        main = int(np.argmax([total[-1] for total in totals]))
        count = len(units[main].shards)
        borders = [*range(0, count, self._window_shards), count]
        reached = [int(total) for total in totals[main][borders]]
        cuts, drawn = [], np.zeros((len(borders), len(self.used)), dtype=np.int64)
        for i, source in enumerate(self.sources):
            # Python integers, whose products do not overflow.
            targets = [share * int(totals[i][-1]) // max(reached[-1], 1) for share in reached]
            own = [(border, 0) for border in borders] if i == main else _cut(totals[i], targets)
            cuts.append(own)
            for window, (unit, into) in enumerate(own):
                drawn[window] += units[i].drawn[unit]
                if into:
                    rows = self._unit_rows(source, units[i], unit, epoch)[:into]
                    drawn[window] += np.bincount(self._place[source.buckets[rows]], minlength=len(self.used))
        return _Epoch(units, cuts, drawn)

    def _units(self, i: int, epoch: int) -> _Units:
        source = self.sources[i]
        counts = self._passes(i, epoch % source.repeats.denominator)
        shards = np.arange(counts.shape[1])
        orders = [
            shuffled_order(hash_counters(self._keys["shard order"], epoch, source.number, number, shards))
            for number in range(len(counts))
        ]
        per_unit = np.concatenate([counts[number][order] for number, order in enumerate(orders)])
        drawn = np.concatenate([np.zeros_like(per_unit[:1]), np.cumsum(per_unit, axis=0)])
        return _Units(np.repeat(np.arange(len(counts)), len(shards)), np.concatenate(orders), drawn)

    def _unit_rows(self, source: SourceSamples, units: _Units, unit: int, epoch: int) -> I64:
        """The rows that a unit draws, in the order in which a border cuts it: int64 [draws]."""
        rows = self._drawn_rows(source, units, unit, epoch)
        ids = ids_of_rows(rows, source.number, source.first_rows)
        return rows[shuffled_order(hash_counters(self._keys["cut order"], epoch, ids, int(units.passes[unit])))]

    def _drawn_rows(self, source: SourceSamples, units: _Units, unit: int, epoch: int) -> I64:
        shard = int(units.shards[unit])
        rows: I64 = np.arange(source.first_rows[shard], source.first_rows[shard + 1])
        rows = rows[source.buckets[rows] != NONE]
        if source.repeats != 1 or source.times is not None:
            rows = rows[self._draws(source, rows, epoch, epoch + 1) > units.passes[unit]]
        return rows

    def _draws_in(self, epoch: int, window: int) -> Window:
        laid = self.epoch(epoch)
        ids, repeats, buckets = [], [], []
        for source, units, cuts in zip(self.sources, laid.units, laid.cuts, strict=True):
            (first, skipped), (last, into) = cuts[window : window + 2]
            for unit in range(first, last + (into > 0)):
                if (skipped and unit == first) or (into and unit == last):
                    begin, end = skipped if unit == first else 0, into if unit == last else None
                    rows = self._unit_rows(source, units, unit, epoch)[begin:end]
                else:
                    rows = self._drawn_rows(source, units, unit, epoch)
                ids.append(ids_of_rows(rows, source.number, source.first_rows))
                repeats.append(np.full(len(rows), units.passes[unit]))
                buckets.append(self._place[source.buckets[rows]])
        samples, repeat, bucket = np.concatenate(ids), np.concatenate(repeats), np.concatenate(buckets)
        order = np.lexsort((hash_counters(self._keys["sample order"], epoch, samples, repeat), bucket))
        starts = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=len(self.used)))])
        return Window(samples[order], repeat[order], starts)


def _cut(totals: I64, targets: list[int]) -> list[tuple[int, int]]:
    """(unit, draws into it) where each number of draws is reached, given the draws before each unit."""
    units = np.searchsorted(totals, targets, side="right") - 1
    return [(int(unit), target - int(totals[unit])) for unit, target in zip(units, targets, strict=True)]
