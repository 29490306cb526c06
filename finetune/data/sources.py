"""The bytes and labels of samples, wherever their shards lie."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from finetune.data.cache import Cache, Mismatch
from finetune.data.index import FILES, IMAGE, TAR_BLOCK, TARS, Index, Span
from finetune.data.labels import Labels, parse_labels
from finetune.data.outage import Patience
from finetune.data.overlay import Overlay
from finetune.data.remote import Remote, is_remote
from finetune.data.samples import Place, place_of, sample_id
from finetune.data.spans import Reading, coalesced, header_size, verify_local
from finetune.errors import UserError

OPEN_FILES = 64
SHARDS_PROBED = 64
"""Of remote shards, at most so many are asked for their size at the start."""


class Record(NamedTuple):
    """What is stored of a sample."""

    image: bytes
    labels: Labels


@dataclass(frozen=True)
class Source:
    """An index, and what lies over it."""

    name: str
    index: Index
    overlays: Mapping[int, Overlay | None]
    """By the first epoch in which each holds."""

    def overlay(self, epoch: int) -> Overlay | None:
        """The overlay that holds in an epoch."""
        return self.overlays[max(first for first in self.overlays if first <= epoch)]

    def row(self, place: Place) -> int:
        """The index's row of what lies at a place."""
        return int(self.index.first_rows[place.shard]) + place.ordinal


class Sources:
    """Reads samples of a run's sources by their ids. Every process opens the files that it reads for itself."""

    def __init__(self, sources: list[Source], text_as: str, remote: Remote, cache: Cache, patience: Patience) -> None:
        self.all = sources
        self._text_as = text_as
        self._remote = remote
        self._cache = cache
        self._patience = patience
        self._files: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict()}

    def read(self, sample: int, epoch: int, *, whole_shard: bool) -> Record:
        """The encoded picture of a sample, and its labels as they are in an epoch; waits out faults of I/O.

        Args:
            whole_shard: whether a remote shard is fetched as a whole, as more of its samples will be wanted, or only
                this sample's bytes, unless the shard is at hand.

        Raises:
            DataFault: the labels cannot be parsed.
            UserError: the shard is not the one that was indexed.
        """
        place = place_of(sample)
        spans = self.all[place.source].index.spans(self.all[place.source].row(place))
        if not is_remote(spans[IMAGE].location):
            members = self._patience.until_done(spans[IMAGE].location, lambda: self._read_local(place, spans))
        elif self.is_remote(place.source, place.shard):
            members = self._read_shard(place, spans, whole_shard)
        else:
            members = {name: self._read_file(span) for name, span in spans.items()}
        return Record(members.pop(IMAGE), self._labels(place, members, epoch))

    def key(self, sample: int) -> str:
        """The sample's key in its source."""
        place = place_of(sample)
        return self.all[place.source].index.key(self.all[place.source].row(place))

    def shard_name(self, sample: int) -> str:
        """Name of the sample's shard as the index has it, after its source's where there are several."""
        place = place_of(sample)
        source = self.all[place.source]
        name = source.index.shards[place.shard].name
        return name if len(self.all) == 1 else f"{source.name}: {name}"

    def find(self, keys: Sequence[str]) -> list[int]:
        """The ids of all samples of some keys, sorted; the key `id:N` is sample id N."""
        ids = {int(key[3:]) for key in keys if key.startswith("id:") and key[3:].isdigit()}
        for number, source in enumerate(self.all):
            index = source.index
            for row in index.rows(keys).tolist():
                shard = int(index.shard[row])
                ids.add(sample_id(Place(number, shard, row - int(index.first_rows[shard]))))
        return sorted(ids)

    def is_remote(self, source: int, shard: int) -> bool:
        """Whether a shard has to be fetched."""
        index = self.all[source].index
        return index.kind == TARS and is_remote(index.location(shard))

    def fetch(self, source: int, shard: int) -> Path:
        """Bring a remote shard into the cache. Raises UserError where it is not the one that was indexed."""
        index = self.all[source].index
        url = index.location(shard)
        try:
            return self._cache.fetch(url, index.shards[shard])
        except Mismatch as error:
            raise index.mismatch(url) from error

    def give_up(self) -> None:
        """Let the threads of this process that wait for data end with the fault that they wait for."""
        self._patience.give_up()

    def verify(self) -> None:
        """Check in little time that the shards are those that were indexed; of remote ones, the sizes of a few.

        Raises:
            UserError: a shard is missing, cannot be reached or is not the one that was indexed.
        """
        for source in self.all:
            index = source.index
            step = -(-len(index.shards) // SHARDS_PROBED)
            for number in range(0, len(index.shards), step if is_remote(index.root) else 1):
                if self.is_remote(self.all.index(source), number):
                    self._verify_remote(index, number)
                elif not is_remote(index.root):
                    verify_local(index, number)

    def _verify_remote(self, index: Index, number: int) -> None:
        url = index.location(number)
        try:
            size = self._remote.size(url)
        except OSError as error:
            raise UserError(f"shard {url} cannot be read ({error}): check the address and your credentials") from error
        if size != index.shards[number].size:
            raise index.mismatch(url)

    def _labels(self, place: Place, members: dict[str, bytes], epoch: int) -> Labels:
        source = self.all[place.source]
        labels = parse_labels(members, self._text_as)
        overlay = source.overlay(epoch)
        return overlay.over(source.row(place), labels) if overlay else labels

    def _read_local(self, place: Place, spans: dict[str, Span]) -> dict[str, bytes]:
        if self.all[place.source].index.kind == FILES:
            return {name: Path(span.location).read_bytes() for name, span in spans.items()}
        location = spans[IMAGE].location
        try:
            return _pread(self._descriptor(location), coalesced(spans))
        except OSError:
            # What was open may have been replaced; the next try opens it anew.
            if location in self._files:
                os.close(self._files.pop(location))
            raise

    def _read_shard(self, place: Place, spans: dict[str, Span], whole_shard: bool) -> dict[str, bytes]:
        index = self.all[place.source].index
        url = index.location(place.shard)
        while True:
            path = self._cache.holds(url, index.shards[place.shard])
            if path is None and not whole_shard:
                return self._read_ranges(index, spans)
            try:
                with (path or self.fetch(place.source, place.shard)).open("rb") as file:
                    return _pread(file.fileno(), coalesced(spans))
            except FileNotFoundError:  # dropped from the cache since
                continue

    def _read_ranges(self, index: Index, spans: dict[str, Span]) -> dict[str, bytes]:
        """Members by range requests; the tar header in front of each range tells whether it is the indexed shard."""
        found: dict[str, bytes] = {}
        for reading in coalesced(spans):
            location, offset, size = reading.span.location, reading.span.offset, reading.span.size
            data = self._read_file(Span(location, offset - TAR_BLOCK, size + TAR_BLOCK))
            if header_size(data[:TAR_BLOCK]) != min(reading.members.values(), key=lambda m: m.offset).size:
                raise index.mismatch(location)
            found |= reading.cut(data[TAR_BLOCK:])
        return found

    def _read_file(self, span: Span) -> bytes:
        return self._patience.until_done(
            span.location, lambda: self._remote.read(span.location, span.offset, span.size)
        )

    def _descriptor(self, location: str) -> int:
        """An open file of a shard; the least recently used ones are closed. `pread` has no seek position to share."""
        if location not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[location] = os.open(location, os.O_RDONLY)
        self._files.move_to_end(location)
        return self._files[location]


def _pread(descriptor: int, readings: list[Reading]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for reading in readings:
        found |= reading.cut(os.pread(descriptor, reading.span.size, reading.span.offset))
    return found
