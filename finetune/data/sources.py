"""The bytes and labels of samples, wherever their shards lie."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.data.cache import Cache
from finetune.data.index import IMAGE, MASK, TAR_BLOCK, TARS, Index, Span
from finetune.data.labels import Labels, parse_labels
from finetune.data.outage import Patience
from finetune.data.overlay import Overlay
from finetune.data.remote import Mismatch, Remote, is_remote
from finetune.data.samples import Place, place_of, sample_id
from finetune.data.spans import coalesced, header_size, verify_local
from finetune.errors import UserError

OPEN_FILES = 64
SHARDS_PROBED = 64
"""Of remote shards, at most so many are asked for their size at the start."""


class Record(NamedTuple):
    """What is stored of a sample."""

    image: bytes
    """The picture, or the latents that are stored of it."""
    labels: Labels
    key: str
    source: int
    """Number of its source."""
    mask: bytes | None
    """The picture beside it that says how much each of its pixels counts."""
    cached: bool | None
    """Whether its shard lay in the cache when it was wanted; None where nothing is cached."""
    size: tuple[int, int] | None = None
    """(width, height) of the picture in pixels, where its latents are read in its place."""


class Members(NamedTuple):
    """The members of a sample as they are stored."""

    data: dict[str, bytes]
    """By MEMBERS of the index."""
    cached: bool | None
    """As `Record` has it."""


@dataclass(frozen=True)
class Source:
    """An index, and what lies over it."""

    name: str
    index: Index
    overlays: Mapping[int, Overlay | None]
    """By the first epoch in which each holds."""
    latents: Mapping[int, Index] = field(default_factory=dict)
    """Likewise; they have the rows and shards of `index`. Empty where the pictures themselves are read."""

    def stored(self, epoch: int) -> Index:
        """The index of what is read in an epoch: the pictures, or their latents."""
        return self.latents[max(first for first in self.latents if first <= epoch)] if self.latents else self.index

    @property
    def all_stored(self) -> list[Index]:
        """The indexes of all that is read in some epoch."""
        return list({id(index): index for index in self.latents.values()}.values()) or [self.index]

    def overlay(self, epoch: int) -> Overlay | None:
        """The overlay that holds in an epoch."""
        return self.overlays[max(first for first in self.overlays if first <= epoch)]

    def have(self, kind: str, epoch: int) -> npt.NDArray[np.bool_]:
        """Which samples have "tags" or "captions" in an epoch: bool [rows]."""
        stored = self.index.numbers({"tags": "has_tags", "captions": "has_caption"}[kind])
        overlay = self.overlay(epoch)
        return overlay.have(kind, stored) if overlay else stored.astype(bool)

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
        """The encoded picture of a sample, its mask, and its labels as they are in an epoch; waits out faults of I/O.

        Args:
            whole_shard: whether a remote shard is fetched as a whole, as more of its samples will be wanted, or only
                this sample's bytes, unless the shard is at hand.

        Raises:
            DataFault: the labels cannot be parsed.
            UserError: the shard is not the one that was indexed.
        """
        place = place_of(sample)
        source = self.all[place.source]
        index, row = source.index, source.row(place)
        members, cached = self.members(sample, epoch, whole_shard=whole_shard)
        image, mask = members.pop(IMAGE), members.pop(MASK, None)
        labels, overlay = parse_labels(members, self._text_as), source.overlay(epoch)
        labels = overlay.over(row, labels) if overlay else labels
        size = (int(index.width[row]), int(index.height[row])) if source.latents else None
        return Record(image, labels, index.key(row), place.source, mask, cached, size)

    def members(self, sample: int, epoch: int, *, whole_shard: bool) -> Members:
        """The bytes of all members of a sample; waits out faults of I/O.

        Args:
            whole_shard: as in `read`.

        Raises:
            UserError: the shard is not the one that was indexed.
        """
        place = place_of(sample)
        source = self.all[place.source]
        index = source.stored(epoch)
        spans = index.spans(source.row(place))
        location = spans[IMAGE].location
        if not is_remote(location):
            read = self._read_tar if index.kind == TARS else _read_files
            return Members(self._patience.until_done(location, lambda: read(spans)), None)
        if index.kind == TARS:
            cached = self._cache.holds(location, index.shards[place.shard]) is not None
            return Members(self._read_shard(place, epoch, spans, whole_shard), cached)
        return Members({name: self._read_range(index, span, span.size) for name, span in spans.items()}, None)

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
        ids = {sample for key in keys if (sample := self._named(key)) is not None}
        for number, source in enumerate(self.all):
            index = source.index
            for row in index.rows(keys).tolist():
                shard = int(index.shard[row])
                ids.add(sample_id(Place(number, shard, row - int(index.first_rows[shard]))))
        return sorted(ids)

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of some keys that no sample has, in their order."""
        there = {source.index.key(row) for source in self.all for row in source.index.rows(keys).tolist()}
        return [key for key in keys if key not in there and self._named(key) is None]

    def _named(self, key: str) -> int | None:
        """The sample that `id:N` names."""
        if not (key.startswith("id:") and key[3:].isdecimal()):
            return None
        sample = int(key[3:])
        place = place_of(sample)
        if place.source >= len(self.all) or place.shard >= len(self.all[place.source].index.shards):
            return None
        return sample if place.ordinal < self.all[place.source].index.shards[place.shard].samples else None

    def is_remote(self, source: int, shard: int, epoch: int) -> bool:
        """Whether what is read of a shard in an epoch has to be fetched."""
        index = self.all[source].stored(epoch)
        return index.kind == TARS and is_remote(index.location(shard))

    def fetch(self, source: int, shard: int, epoch: int) -> Path:
        """Bring what is read of a remote shard in an epoch into the cache. Raises UserError where it is not the one
        that was indexed."""
        index = self.all[source].stored(epoch)
        url = index.location(shard)
        try:
            return self._cache.fetch(url, index.shards[shard])
        except Mismatch as error:
            raise index.mismatch(url) from error

    def give_up(self) -> None:
        """Let the threads of this process that wait for data by now end with the fault that they wait for."""
        self._patience.give_up()

    def verify(self) -> None:
        """Check in little time that the shards are those that were indexed; of remote ones, the sizes of a few.

        Raises:
            UserError: a shard is missing, cannot be reached or is not the one that was indexed; or the cache's folder
                cannot be written.
        """
        for index in (index for source in self.all for index in source.all_stored):
            far = [number for number in range(len(index.shards)) if is_remote(index.location(number))]
            near = np.setdiff1d(np.arange(len(index.shards)), far)
            for number in near.tolist():
                verify_local(index, number)
            if far and index.kind == TARS:
                self._cache.check()
                for number in far[:: -(-len(far) // SHARDS_PROBED)]:
                    self._verify_remote(index, number)

    def check_masks(self) -> None:
        """Raise UserError where no sample of any source has a mask beside it."""
        if not any(source.index.numbers("mask_size").any() for source in self.all):
            raise UserError(
                "data.mask is member, but no sample has a mask: put KEY.mask.png beside the pictures and index them "
                "again with `python -m data_tools index`, or set data.mask=none"
            )

    def _verify_remote(self, index: Index, number: int) -> None:
        url = index.location(number)
        try:
            size = self._patience.for_a_while(lambda: self._remote.size(url))
        except OSError as error:
            raise UserError(f"shard {url} cannot be read ({error}): check the address and your credentials") from error
        if size != index.shards[number].size:
            raise index.mismatch(url)

    def _read_tar(self, spans: dict[str, Span]) -> dict[str, bytes]:
        location = spans[IMAGE].location
        try:
            return _pread(self._descriptor(location), spans)
        except OSError:
            # What was open may have been replaced; the next try opens it anew.
            if location in self._files:
                os.close(self._files.pop(location))
            raise

    def _read_shard(self, place: Place, epoch: int, spans: dict[str, Span], whole_shard: bool) -> dict[str, bytes]:
        index = self.all[place.source].stored(epoch)
        url, shard = index.location(place.shard), index.shards[place.shard]
        fetch = partial(self.fetch, place.source, place.shard, epoch)
        while path := fetch() if whole_shard else self._cache.holds(url, shard):
            found = self._patience.until_done(str(path), partial(_read_cached, path, spans))
            if found is not None:
                return found
        return self._read_ranges(index, spans, shard.size)

    def _read_ranges(self, index: Index, spans: dict[str, Span], shard_size: int) -> dict[str, bytes]:
        """Members by range requests; the tar header in front of each range tells whether it is the indexed shard."""
        found: dict[str, bytes] = {}
        for reading in coalesced(spans):
            location, offset, size = reading.span
            data = self._read_range(index, Span(location, offset - TAR_BLOCK, size + TAR_BLOCK), shard_size)
            if header_size(data[:TAR_BLOCK]) != min(reading.members.values(), key=lambda m: m.offset).size:
                raise index.mismatch(location)
            found |= reading.cut(data[TAR_BLOCK:])
        return found

    def _read_range(self, index: Index, span: Span, file_size: int) -> bytes:
        try:
            return self._patience.until_done(span.location, lambda: self._remote.read_indexed(*span, file_size))
        except Mismatch as error:
            raise index.mismatch(span.location) from error

    def _descriptor(self, location: str) -> int:
        """An open file of a shard; the least recently used ones are closed. `pread` has no seek position to share."""
        if location not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[location] = os.open(location, os.O_RDONLY)
        self._files.move_to_end(location)
        return self._files[location]


def _read_files(spans: dict[str, Span]) -> dict[str, bytes]:
    return {name: Path(span.location).read_bytes() for name, span in spans.items()}


def _read_cached(path: Path, spans: dict[str, Span]) -> dict[str, bytes] | None:
    """Members of a file in the cache; None where it has been dropped from there since."""
    try:
        with path.open("rb") as file:
            return _pread(file.fileno(), spans)
    except FileNotFoundError:
        return None


def _pread(descriptor: int, spans: dict[str, Span]) -> dict[str, bytes]:
    """Members, each by a read of its own: cutting a larger one up would copy the picture once more."""
    found = {}
    for name, (location, offset, size) in spans.items():
        found[name] = data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise OSError(f"{location}: {len(data)} of {size} bytes at {offset}: the file is cut short")
    return found
