"""Indexing shards: read every tar once, in parallel, and write down where its samples lie.

What was found in a shard is kept in `.index/` beside it, so that a second run only reads shards that are new.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from data_tools.progress import in_parallel
from finetune.data.images import probe
from finetune.data.index import SCHEMA, TAR_BLOCK, Index, Shard, file_sha256, write_index
from finetune.data.labels import parse_labels
from finetune.errors import DataFault, UserError

# Pillow decides which of these it can read, with the plugins that are installed.
IMAGE_SUFFIXES = frozenset(
    {"apng", "avif", "bmp", "gif", "heic", "heif", "jfif", "jpeg", "jpg", "jxl", "mpo", "png", "tif", "tiff", "webp"}
)
PARTS = ".index"
PART_VERSION = 1


class Member(NamedTuple):
    """One file in a tar."""

    key: str
    suffix: str
    offset: int
    size: int


class Refused(NamedTuple):
    """A sample that is left out of the index or the shards."""

    key: str
    reason: str


@dataclass(frozen=True)
class Part:
    """What was found in one shard."""

    shard: Shard
    table: pa.Table
    refused: list[Refused]


def index_folder(folder: Path, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Index every `.tar` below a folder.

    Raises:
        UserError: there are no shards.
    """
    paths = sorted(p for p in folder.rglob("*.tar") if PARTS not in p.parts)
    if not paths:
        raise UserError(f"there is no .tar file below {folder}: give the folder that holds the shards")
    jobs = [(folder, path, text_as) for path in paths]
    parts = sorted(in_parallel(index_shard, jobs, workers, "indexing shards"), key=lambda part: part.shard.name)
    usable = [part for part in parts if part.shard.samples]
    index = write_index(folder, [part.shard for part in usable], [part.table for part in usable])
    return index, [refused for part in parts for refused in part.refused]


def verify_folder(folder: Path, workers: int) -> Index:
    """Read every shard again and compare it with the index. Raises UserError at the first that differs."""
    index = Index.load(folder)
    index.verify()
    for _ in in_parallel(Index.verify_hashes, [(index, i) for i in range(len(index.shards))], workers, "verifying"):
        pass
    return index


def index_shard(folder: Path, path: Path, text_as: str) -> Part:
    """What one shard holds: from `.index/` where the shard has not changed since, else by reading it."""
    stat = path.stat()
    stamp = f"{PART_VERSION}:{stat.st_size}:{stat.st_mtime_ns}:{text_as}"
    name = path.relative_to(folder).as_posix()
    kept = folder / PARTS / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow"
    if (part := _load_part(kept, stamp)) is None:
        part = _read_shard(name, path, text_as)
        _save_part(kept, part, stamp)
    return part


def _read_shard(name: str, path: Path, text_as: str) -> Part:
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            _check_end(tar, file)
            for key, group in groupby(_members(tar), key=lambda member: member.key):
                try:
                    rows.append(_describe(key, list(group), file, text_as))
                except DataFault as fault:
                    refused.append(Refused(f"{name}: {key}", str(fault)))
    except tarfile.TarError as error:
        refused.append(Refused(name, f"unfinished or damaged tar: {error}"))
        rows = []
    shard = Shard(name, path.stat().st_size, file_sha256(path), len(rows))
    return Part(shard, pa.Table.from_pylist(rows, SCHEMA), refused)


def _check_end(tar: tarfile.TarFile, file: BinaryIO) -> None:
    """Raise ReadError unless a block of zeros follows the last member: a tar cut short would pass otherwise."""
    members = tar.getmembers()
    end = max((m.offset_data + -(-m.size // TAR_BLOCK) * TAR_BLOCK for m in members), default=0)
    file.seek(end)
    if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise tarfile.ReadError(f"no end after {len(members)} members")


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """Files in the order of the tar; as webdataset has it, the key ends at the first dot of the base name."""
    for info in tar:
        path = PurePosixPath(info.name)
        stem, dot, suffix = path.name.partition(".")
        if info.isfile() and stem and dot:
            yield Member(str(path.with_name(stem)), suffix.lower(), info.offset_data, info.size)


def _describe(key: str, members: list[Member], file: BinaryIO, text_as: str) -> dict[str, Any]:
    """A sample's row of the index, but for its shard. Raises DataFault where it cannot be used."""
    images = [member for member in members if member.suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise DataFault(f"{len(images)} pictures of one key" if images else "no picture")
    by_suffix = {member.suffix: member for member in members}
    text, side = by_suffix.get("txt"), by_suffix.get("json")
    info = probe(_bytes(file, images[0]))
    labels = parse_labels(text and _bytes(file, text), side and _bytes(file, side), text_as)
    row: dict[str, Any] = {"key": key, "format": info.format, "width": info.width, "height": info.height, "shard": 0}
    for name, member in (("image", images[0]), ("text", text), ("json", side)):
        row[f"{name}_offset"], row[f"{name}_size"] = (member.offset, member.size) if member else (0, 0)
    return {**row, "has_tags": int(bool(labels.tags)), "has_caption": int(bool(labels.captions))}


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _save_part(path: Path, part: Part, stamp: str) -> None:
    path.parent.mkdir(exist_ok=True)
    metadata = {"stamp": stamp, "shard": json.dumps(asdict(part.shard)), "refused": json.dumps(part.refused)}
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as sink:
        table = part.table.replace_schema_metadata(metadata)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    temporary.replace(path)


def _load_part(path: Path, stamp: str) -> Part | None:
    if not path.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return None
    metadata = table.schema.metadata
    if metadata[b"stamp"].decode() != stamp:
        return None
    refused = [Refused(*entry) for entry in json.loads(metadata[b"refused"])]
    return Part(Shard(**json.loads(metadata[b"shard"])), table.replace_schema_metadata(None), refused)
