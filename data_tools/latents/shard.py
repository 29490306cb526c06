"""One shard of latents as it is written: a tar whose members have numbers for names, and the rows of its index."""

import fcntl
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from data_tools.indexing import Part, Refused, save_part
from finetune.data.index import IMAGE, MEMBERS, SIDE_FILES, TAR_BLOCK, Shard, file_sha256

SUFFIXES = {IMAGE: "safetensors", **SIDE_FILES}


class ShardWriter:
    """Writes the latents of a shard's samples, in any order; whoever has one is alone in doing so."""

    def __init__(self, path: Path, kept: Path, pictures: pa.Table, file: BinaryIO) -> None:
        """Begin from the start.

        Args:
            path: where the shard goes in the end.
            kept: where it is kept what it holds.
            pictures: rows of the pictures' index.
            file: opened to append, and locked; its name ends in `.part` until all is there.
        """
        self._path = path
        self._kept = kept
        self._pictures = pictures
        self._file = file
        file.truncate(0)
        file.seek(0)
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._numbers = {
            name: np.zeros(len(pictures), dtype=pictures.schema.field(name).type.to_pandas_dtype())
            for name in ("width", "height", *(f"{member}_{what}" for member in MEMBERS for what in ("offset", "size")))
        }
        self._faults: list[Refused] = []

    def add(self, ordinal: int, size: tuple[int, int], members: Mapping[str, bytes], fault: str | None) -> None:
        """Write a sample.

        Args:
            ordinal: its place in the shard.
            size: (width, height) in pixels that were encoded.
            members: its latents and its labels, by MEMBERS of the index.
            fault: why there are no latents, where there are none.
        """
        self._numbers["width"][ordinal], self._numbers["height"][ordinal] = size
        for member, data in members.items():
            info = tarfile.TarInfo(f"{ordinal:09d}.{SUFFIXES[member]}")
            info.size = len(data)
            self._numbers[f"{member}_offset"][ordinal] = self._tar.offset + TAR_BLOCK
            self._numbers[f"{member}_size"][ordinal] = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        if fault is not None:
            self._faults.append(Refused(self._pictures["key"][ordinal].as_py(), fault))

    def finish(self) -> None:
        """Put the shard in its place, and let go of it."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        part, table = Path(self._file.name), self._pictures
        for name, values in self._numbers.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        shard = Shard(self._path.name, part.stat().st_size, file_sha256(part), len(table))
        part.replace(self._path)  # before it counts as done
        save_part(self._kept, Part(shard, table, self._faults), self._path.stem)
        # Closing is not enough: a process that was forked meanwhile has it open too.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
