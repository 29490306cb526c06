"""The index: where every sample of a folder of shards lies, in one memory-mapped file.

One Arrow IPC file, `index.arrow`, with one row per sample in shard order. Its numeric columns are read as numpy arrays
that share the mapped file, so an index of 100 million samples opens at once and costs every process the same pages.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune.data.hashing import U64
from finetune.errors import UserError

FILE_NAME = "index.arrow"
VERSION = 1
TAR_BLOCK = 512
NUMBERS = {
    "shard": pa.uint32(),
    "image_offset": pa.uint64(),
    "image_size": pa.uint64(),
    "text_offset": pa.uint64(),
    "text_size": pa.uint64(),
    "json_offset": pa.uint64(),
    "json_size": pa.uint64(),
    "width": pa.uint32(),
    "height": pa.uint32(),
    "has_tags": pa.uint8(),
    "has_caption": pa.uint8(),
}
"""Offsets and sizes are bytes within the shard, and size 0 says that there is no such member; width and height are
pixels after EXIF rotation."""
SCHEMA = pa.schema([("key", pa.large_string()), ("format", pa.dictionary(pa.int8(), pa.string())), *NUMBERS.items()])


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    """Path relative to the index's folder."""
    size: int
    """Bytes."""
    sha256: str
    samples: int


class Index:
    """The samples of a folder of shards. Pickles as its path, so loader workers map the same file."""

    def __init__(self, folder: Path, table: pa.Table) -> None:
        metadata = json.loads(table.schema.metadata[b"longhaul"])
        self.folder = folder
        self.shards = tuple(Shard(**shard) for shard in metadata["shards"])
        self.fingerprint: str = metadata["fingerprint"]
        self._table = table
        self.shard = self._numbers("shard")
        self.image_offset = self._numbers("image_offset")
        self.image_size = self._numbers("image_size")
        self.text_offset = self._numbers("text_offset")
        self.text_size = self._numbers("text_size")
        self.json_offset = self._numbers("json_offset")
        self.json_size = self._numbers("json_size")
        self.width = self._numbers("width")
        self.height = self._numbers("height")
        self.has_tags = self._numbers("has_tags")
        self.has_caption = self._numbers("has_caption")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.load, (self.folder,)

    @classmethod
    def load(cls, folder: Path | str) -> "Index":
        """Map the index of a folder of shards.

        Raises:
            UserError: there is none, or it cannot be read by this version.
        """
        path = Path(folder).expanduser() / FILE_NAME
        remedy = f"make it with `python -m data_tools index {folder}`"
        if not path.is_file():
            raise UserError(f"there is no index {path}: {remedy}")
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid as error:
            raise UserError(f"the index {path} is damaged ({error}): {remedy}") from error
        if json.loads((table.schema.metadata or {}).get(b"longhaul", b"{}")).get("version") != VERSION:
            raise UserError(f"the index {path} is of another version: {remedy}")
        if not table.num_rows:
            raise UserError(f"the index {path} holds no samples: check what was refused, then {remedy}")
        return cls(path.parent, table)

    @cached_property
    def sample_ids(self) -> U64:
        """Shard number << 32 | ordinal within the shard, which stays a sample's name when shards are added: uint64
        [samples]."""
        first_rows = np.cumsum([0, *(shard.samples for shard in self.shards)])
        ordinals = np.arange(len(self)) - first_rows[self.shard]
        ids: U64 = self.shard.astype(np.uint64) << np.uint64(32) | ordinals.astype(np.uint64)
        return ids

    def key(self, row: int) -> str:
        """The sample's key, as its members are called in the shard."""
        return str(self._table["key"][row].as_py())

    def shard_path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / self.shards[number].name

    def verify(self) -> None:
        """Check in milliseconds that the shards are those that were indexed: size, and the tar headers in front of
        every shard's first and last image.

        Raises:
            UserError: a shard is missing or is not the one that was indexed.
        """
        last_rows = np.cumsum([shard.samples for shard in self.shards]) - 1
        for number, (shard, last) in enumerate(zip(self.shards, last_rows, strict=True)):
            path = self.shard_path(number)
            if not path.is_file():
                raise UserError(
                    f"shard {path} is missing: put it back, or index the folder again with "
                    f"`python -m data_tools index {self.folder}`"
                )
            matches = path.stat().st_size == shard.size
            for row in {int(last) - shard.samples + 1, int(last)} if shard.samples else ():
                matches = matches and self._header_matches(path, row)
            if not matches:
                raise self.mismatch(path)

    def verify_hashes(self, number: int) -> None:
        """Read a whole shard and compare its SHA-256. Raises UserError where it differs."""
        path = self.shard_path(number)
        if file_sha256(path) != self.shards[number].sha256:
            raise self.mismatch(path)

    def mismatch(self, path: Path) -> UserError:
        """What to say when a shard is not the one that was indexed."""
        return UserError(
            f"the index {self.folder / FILE_NAME} does not match its shard {path.name}: put back the shard that was "
            f"indexed, or index the folder again with `python -m data_tools index {self.folder}`"
        )

    def _header_matches(self, path: Path, row: int) -> bool:
        with path.open("rb") as file:
            file.seek(int(self.image_offset[row]) - TAR_BLOCK)
            header = file.read(TAR_BLOCK)
        # ustar, POSIX.1-1988: the size in octal at byte 124, the magic at 257; GNU writes large sizes in base 256.
        if header[257:262] != b"ustar":
            return False
        field = header[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b"\0 ") or b"0", 8)
        return size == int(self.image_size[row])

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        """A column as an array that shares the mapped file."""
        column = self._table[name]
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
        return array


def write_index(folder: Path, shards: Sequence[Shard], tables: Sequence[pa.Table]) -> Index:
    """Write the index of a folder from its shards and their samples (SCHEMA without regard to `shard`, which is set
    here), under a temporary name first, so that there is never half an index."""
    numbered = [
        table.set_column(
            table.schema.get_field_index("shard"), "shard", pa.array(np.full(table.num_rows, i, dtype=np.uint32))
        )
        for i, table in enumerate(tables)
    ]
    joined = pa.concat_tables(numbered).unify_dictionaries().combine_chunks() if numbered else SCHEMA.empty_table()
    digest = hashlib.sha256(json.dumps([VERSION, [asdict(s) for s in shards]]).encode())
    for name in NUMBERS:
        digest.update(joined[name].to_numpy().tobytes())
    metadata = {"version": VERSION, "fingerprint": digest.hexdigest(), "shards": [asdict(s) for s in shards]}
    joined = joined.replace_schema_metadata({"longhaul": json.dumps(metadata)})

    path, temporary = folder / FILE_NAME, folder / f".{FILE_NAME}.tmp"
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, joined.schema) as writer:
            writer.write_table(joined)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return Index.load(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
