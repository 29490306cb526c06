"""The index: where every sample of a set of shards lies, in one memory-mapped file.

One Arrow IPC file, `index.arrow`, with one row per sample in shard order. Its numeric columns are read as numpy arrays
that share the mapped file, so an index of 100 million samples opens at once and costs every process the same pages.

Shards keep their number when others are added behind them, and the fingerprint is a chain over the shards, so the
index that a run began with can be told, and had, from one that has grown since.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from finetune.errors import UserError

FILE_NAME = "index.arrow"
VERSION = 3
TAR_BLOCK = 512
TARS, FILES = "tars", "files"
IMAGE, MASK = "image", "mask"
SIDE_FILES = {"text": "txt", "tags": "tags", "caption": "caption", "json": "json", MASK: "mask.png"}
"""Members that hold labels or a mask, by the suffix that they have in a shard or beside a picture."""
MEMBERS = (IMAGE, *SIDE_FILES)
NUMBERS = {
    "shard": pa.uint32(),
    **{f"{member}_{what}": pa.uint64() for member in MEMBERS for what in ("offset", "size")},
    "width": pa.uint32(),
    "height": pa.uint32(),
    "repeats": pa.uint16(),
    "has_tags": pa.uint8(),
    "has_caption": pa.uint8(),
}
"""Offsets and sizes are bytes within the shard, and size 0 says that there is no such member; width and height are
pixels after EXIF rotation; repeats is what the folder's name asks for (`10_fox`), else 1."""
SCHEMA = pa.schema([("key", pa.large_string()), ("format", pa.dictionary(pa.int8(), pa.string())), *NUMBERS.items()])


@dataclass(frozen=True)
class Shard:
    """One tar file, or one group of loose pictures."""

    name: str
    """URL, absolute path, or path relative to the index's root; of a group of loose pictures, its number."""
    size: int
    """Bytes."""
    sha256: str
    """Of the tar's bytes; of a group of loose pictures, of their names and sizes."""
    samples: int


class Span(NamedTuple):
    """Bytes of one file."""

    location: str
    """Path or URL."""
    offset: int
    size: int


class Index:
    """The samples of a set of shards. Pickles as its path, so loader workers map the same file."""

    def __init__(self, folder: Path, root: str, table: pa.Table, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.root = root
        self.kind: str = metadata["kind"]
        self.shards = tuple(Shard(**shard) for shard in metadata["shards"])
        self.chain: list[str] = metadata["chain"]
        self.latents: dict[str, Any] | None = metadata.get("latents")
        """Of an index of latents, what they were made of and how; None where there are pictures."""
        self._metadata = metadata
        self._table = table
        self.first_rows: npt.NDArray[np.int64] = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self.shard = self.numbers("shard")
        self.width = self.numbers("width")
        self.height = self.numbers("height")
        self.repeats = self.numbers("repeats")
        self._spans = {m: (self.numbers(f"{m}_offset"), self.numbers(f"{m}_size")) for m in MEMBERS}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.load, (self.folder, self.root, len(self.shards))

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' names, sizes, hashes and of all rows."""
        return self.chain[-1]

    @classmethod
    def load(
        cls, folder: Path | str, root: str | None = None, shards: int | None = None, remedy: str | None = None
    ) -> "Index":
        """Map the index of a folder.

        Args:
            root: where relative names start, a folder or a URL; None takes what was indexed.
            shards: leave out all shards but the first so many.
            remedy: what makes it, where that is not `data_tools index`.

        Raises:
            UserError: there is none, or it cannot be read by this version.
        """
        path = Path(folder).expanduser() / FILE_NAME
        remedy = remedy or f"make it with `python -m data_tools index {folder}`"
        if not path.is_file():
            raise UserError(f"there is no index {path}: {remedy}")
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"the index {path} is damaged ({error}): {remedy}") from error
        metadata = json.loads((table.schema.metadata or {}).get(b"longhaul", b"{}"))
        if metadata.get("version") != VERSION:
            raise UserError(f"the index {path} is of another version: {remedy}")
        if not table.num_rows:
            raise UserError(f"the index {path} holds no samples: check what was refused, then {remedy}")
        whole = cls(path.parent, root or metadata["root"] or str(path.parent), table, metadata)
        return whole if shards is None else whole.head(shards)

    def head(self, shards: int) -> "Index":
        """The index of the first `shards` shards."""
        if shards == len(self.shards):
            return self
        first = {**self._metadata, "shards": self._metadata["shards"][:shards], "chain": self.chain[:shards]}
        return Index(self.folder, self.root, self._table.slice(0, int(self.first_rows[shards])), first)

    @property
    def keys(self) -> pa.ChunkedArray:
        """The keys of all samples, as Arrow's large strings."""
        return self._table["key"]

    def key(self, row: int) -> str:
        """The sample's key, as its members are called in the shard; of a loose picture, its path in the tree."""
        return str(self._table["key"][row].as_py())

    def rows(self, keys: Iterable[str]) -> npt.NDArray[np.int64]:
        """The rows that have one of these keys, in order: int64 [rows]."""
        wanted = pc.is_in(self.keys, value_set=pa.array(list(keys), pa.large_string()))
        return np.flatnonzero(wanted.to_numpy()).astype(np.int64)

    def table(self, number: int) -> pa.Table:
        """All columns of a shard's rows."""
        first, end = self.first_rows[number : number + 2].tolist()
        return self._table.slice(first, end - first).replace_schema_metadata(None)

    def location(self, number: int) -> str:
        """Path or URL of a shard."""
        return joined(self.root, self.shards[number].name)

    def spans(self, row: int) -> dict[str, Span]:
        """Where the members of a sample lie, by MEMBERS; those that it has."""
        sizes = {member: int(sizes[row]) for member, (_, sizes) in self._spans.items()}
        there = [(member, int(self._spans[member][0][row]), size) for member, size in sizes.items() if size]
        if self.kind == TARS:
            shard = self.location(int(self.shard[row]))
            return {member: Span(shard, offset, size) for member, offset, size in there}
        picture = joined(self.root, self.key(row))
        files = {IMAGE: picture, **{member: beside(picture, suffix) for member, suffix in SIDE_FILES.items()}}
        return {member: Span(files[member], offset, size) for member, offset, size in there}

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of every sample's members together: int64 [samples]."""
        total = np.zeros(len(self), dtype=np.int64)
        for _, sizes in self._spans.values():
            total += sizes.astype(np.int64)
        return total

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """A column of NUMBERS as an array that shares the mapped file."""
        column = self._table[name]
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
        return array

    def mismatch(self, location: str) -> UserError:
        """What to say when a shard is not the one that was indexed."""
        name = location.rpartition("/")[2]
        return UserError(
            f"the index {self.folder / FILE_NAME} does not match its shard {name}: put back the shard that was "
            f"indexed, or {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What makes it anew."""
        if self.latents:
            return "encode it again with `python -m data_tools latents conf=…`"
        return f"index the folder again with `python -m data_tools index {self.folder}`"


def joined(root: str, name: str) -> str:
    """A name below a root, unless it is a URL or an absolute path of its own."""
    return name if "://" in name or name.startswith("/") else f"{root.rstrip('/')}/{name}"


def beside(picture: str, suffix: str) -> str:
    """The side file of a loose picture: the same name with another suffix."""
    return f"{picture.rpartition('.')[0]}.{suffix}"


def write_index(
    folder: Path,
    kind: str,
    shards: Sequence[Shard],
    tables: Sequence[pa.Table],
    root: Path | None = None,
    latents: dict[str, Any] | None = None,
) -> Index:
    """Write the index of some shards and their samples (SCHEMA without regard to `shard`, which is set here), under a
    temporary name first, so that there is never half an index.

    Args:
        folder: where the index goes.
        kind: TARS or FILES.
        root: where relative names start; None means `folder`, which may then be moved as a whole.
        latents: of latents, what they were made of and how.
    """
    numbered = [
        table.set_column(
            table.schema.get_field_index("shard"), "shard", pa.array(np.full(table.num_rows, i, dtype=np.uint32))
        )
        for i, table in enumerate(tables)
    ]
    whole = pa.concat_tables(numbered).unify_dictionaries().combine_chunks() if numbered else SCHEMA.empty_table()
    metadata = {
        "version": VERSION,
        "kind": kind,
        "root": str(root.absolute()) if root else None,
        "shards": [asdict(shard) for shard in shards],
        "chain": _chain(kind, shards, numbered),
        **({"latents": latents} if latents else {}),
    }
    whole = whole.replace_schema_metadata({"longhaul": json.dumps(metadata)})
    path, temporary = folder / FILE_NAME, folder / f".{FILE_NAME}.tmp"
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, whole.schema) as writer:
            writer.write_table(whole)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return Index.load(folder)


def _chain(kind: str, shards: Sequence[Shard], tables: Sequence[pa.Table]) -> list[str]:
    """The index's fingerprint after each of its shards."""
    digests: list[str] = []
    for shard, table in zip(shards, tables, strict=True):
        before = digests[-1] if digests else f"{VERSION}:{kind}"
        digest = hashlib.sha256(json.dumps([before, asdict(shard)]).encode())
        for name in NUMBERS:
            digest.update(table[name].to_numpy().tobytes())
        digests.append(digest.hexdigest())
    return digests


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
