"""What there is to encode: sets of latents, each a shard for every shard of pictures, and who encodes which of them.

A shard's name is a hash of all that it is made from, so that one which is there need not be made again, wherever its
pictures stand in their index by now. A part is its own lock, as in the cache of remote shards.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from data_tools.indexing import PARTS, Part, load_part, write_refused
from data_tools.latents.shard import ShardWriter
from finetune.config import Config, plan_settings
from finetune.data.buckets import NONE, U16
from finetune.data.cache import lies_at
from finetune.data.index import TARS, Index, write_index
from finetune.data.latent_sets import VERSION, Making, origins, set_folder, size_table, stored_buckets
from finetune.data.plan import Plan
from finetune.data.sources import Sources
from finetune.errors import UserError
from finetune.monitor.files import replace_text

MAKING = "set.json"


@dataclass(frozen=True)
class LatentSet:
    """The latents of one source in one set of buckets."""

    folder: Path
    source: int
    """Number of the source."""
    index: Index
    """Of its pictures."""
    buckets: U16
    """Bucket of every row, NONE where none is needed: uint16 [rows]."""
    sizes: npt.NDArray[np.uint32]
    """(width, height) in pixels by bucket, 0 for NONE: uint32 [NONE + 1, 2]."""
    micro_batch: int
    """Pictures that are encoded at a time."""
    making: Making

    def rows(self, shard: int) -> slice:
        """The rows of a shard."""
        first, end = self.index.first_rows[shard : shard + 2].tolist()
        return slice(first, end)

    def size(self, shard: int, ordinal: int) -> tuple[int, int]:
        """(width, height) in pixels of a sample in its bucket, by its place in a shard."""
        width, height = self.sizes[self.buckets[self.rows(shard).start + ordinal]].tolist()
        return width, height

    def path(self, shard: int) -> Path:
        """Where the latents of a shard go."""
        return self.folder / f"{self._names[shard]}.tar"

    def part(self, shard: int) -> Part | None:
        """What a shard holds that is encoded; None where it is not."""
        path = self.path(shard)
        part = load_part(self.kept(shard), path.stem)
        return part if part and path.is_file() and path.stat().st_size == part.shard.size else None

    def kept(self, shard: int) -> Path:
        """Where it is kept what a shard holds."""
        return self.folder / PARTS / f"{self._names[shard]}.arrow"

    def claim(self, shard: int) -> ShardWriter | None:
        """What writes a shard that no other process encodes; None where one does, or has done so."""
        path = self.path(shard).with_suffix(".part")
        while True:
            file = path.open("ab")
            if not _locked(file):
                file.close()
                return None
            if not lies_at(path, file):  # who held the lock has finished it
                file.close()
            elif self.part(shard):
                path.unlink()
                file.close()
                return None
            else:
                return ShardWriter(self.path(shard), self.kept(shard), self.index.table(shard), file)

    def batches(self, shard: int) -> Iterator[list[int]]:
        """The samples of a shard, by their places in it, as many at a time as are encoded together: all of one
        bucket."""
        buckets = self.buckets[self.rows(shard)]
        for bucket in np.unique(buckets[buckets != NONE]):
            ordinals = np.flatnonzero(buckets == bucket).tolist()
            yield from (ordinals[i : i + self.micro_batch] for i in range(0, len(ordinals), self.micro_batch))

    def begin(self) -> None:
        """Make the folder. Raises UserError where it holds latents that were made otherwise."""
        (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
        path, making = self.folder / MAKING, asdict(self.making)
        with FileLock(self.folder / PARTS / "lock"):
            if not path.exists():
                replace_text(path, json.dumps(making, indent=1) + "\n")
            before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [name for name in making if before.get(name) != making[name]]:
            name = differing[0]
            raise UserError(
                f"{self.folder} holds latents that were made otherwise ({name} was {before.get(name)}, is "
                f"{making[name]}): give another data.latents, or remove that folder"
            )

    def write_index(self, parts: Sequence[Part]) -> None:
        """Write the index of all shards, and which pictures cannot be used."""
        told = {**asdict(self.making), "origins": self._origins}
        with FileLock(self.folder / PARTS / "lock"):
            write_index(self.folder, TARS, [part.shard for part in parts], [part.table for part in parts], latents=told)
            write_refused(self.folder, (fault for part in parts for fault in part.refused))

    @cached_property
    def _origins(self) -> list[str]:
        return origins(self.index)

    @cached_property
    def _names(self) -> list[str]:
        """Of every shard, without suffix."""
        names = []
        for shard, origin in enumerate(self._origins):
            digest = hashlib.sha256(json.dumps([VERSION, asdict(self.making), origin]).encode())
            digest.update(self.sizes[self.buckets[self.rows(shard)]].tobytes())
            names.append(digest.hexdigest()[:32])
        return names


def sets_of(config: Config, plan: Plan, sources: Sources, making: Making) -> list[LatentSet]:
    """All that a recipe needs.

    Raises:
        UserError: phases that share their buckets put samples into different ones.
    """
    found: dict[str, LatentSet] = {}
    for chapter, shape in zip(plan.chapters(0), plan_settings(config).shapes, strict=True):
        for source, samples in zip(sources.all, chapter.layout.sources, strict=True):
            folder = set_folder(config.data, source.name, shape.buckets)
            buckets, sizes = stored_buckets(chapter, samples), size_table(chapter)
            latents = LatentSet(
                Path(folder).expanduser(),
                samples.number,
                source.index,
                buckets,
                sizes,
                micro_batch=chapter.micro_batch,
                making=making,
            )
            other = found.setdefault(folder, latents)
            if not np.array_equal(other.sizes[other.buckets], sizes[buckets]):
                raise UserError(
                    f"phases of the same buckets merge rare ones of source {source.name!r} differently, as their "
                    "micro_batch differs: list the buckets in data.buckets.sizes_px, without the rare ones"
                )
    return list(found.values())


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
