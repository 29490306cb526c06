"""Indexing: read every shard once, in parallel, and write down where its samples lie.

What was found in a shard is kept in `.index/` beside the index, so that a second run only reads what is new; shards
that were indexed before keep their numbers, and new ones come behind them.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from braceexpand import braceexpand
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from data_tools.progress import in_parallel
from finetune.data.cache import PIECE_BYTES
from finetune.data.images import probe
from finetune.data.index import (
    FILE_NAME,
    IMAGE,
    MEMBERS,
    SCHEMA,
    SIDE_FILES,
    TAR_BLOCK,
    TARS,
    Index,
    Shard,
    beside,
    file_sha256,
    write_index,
)
from finetune.data.labels import parse_labels
from finetune.data.remote import Remote, is_remote
from finetune.data.spans import verify_local
from finetune.errors import DataFault, UserError

# Pillow decides which of these it can read, with the plugins that are installed.
IMAGE_SUFFIXES = frozenset(
    {"apng", "avif", "bmp", "gif", "heic", "heif", "jfif", "jpeg", "jpg", "jxl", "mpo", "png", "tif", "tiff", "webp"}
)
PARTS = ".index"
PART_VERSION = 2
TIMEOUT_S = 30.0
ATTEMPTS = 8


class Member(NamedTuple):
    """One file of a sample."""

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
    """Index every `.tar` below a folder, in the folder itself.

    Raises:
        UserError: there are no shards.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.tar") if PARTS not in p.parts)
    if not names:
        raise UserError(f"there is no .tar file below {folder}: give the folder that holds the shards")
    return index_shards(names, folder, text_as, workers)


def index_shards(names: Sequence[str], folder: Path, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Index shards by their URLs, absolute paths, or paths relative to `folder`, where the index goes."""
    folder.mkdir(parents=True, exist_ok=True)
    before = [shard.name for shard in known_shards(folder)]
    ordered = [name for name in before if name in set(names)] + [name for name in names if name not in set(before)]
    jobs = [(folder, name, text_as) for name in ordered]
    by_name = {part.shard.name: part for part in in_parallel(index_shard, jobs, workers, "indexing shards")}
    return joined(folder, TARS, [by_name[name] for name in ordered])


def joined(folder: Path, kind: str, parts: Sequence[Part], root: Path | None = None) -> tuple[Index, list[Refused]]:
    """Write the index of some parts. It, and what was refused."""
    usable = [part for part in parts if part.shard.samples]
    index = write_index(folder, kind, [part.shard for part in usable], [part.table for part in usable], root)
    return index, [refused for part in parts for refused in part.refused]


def known_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards of the index that is there, in their order."""
    if not (folder / FILE_NAME).is_file():
        return ()
    try:
        return Index.load(folder).shards
    except UserError:  # of another version, empty or damaged: it is written anew
        return ()


def expand(patterns: Iterable[str]) -> list[str]:
    """The shards that brace ranges, globs and list files name, each once.

    Raises:
        UserError: something names no shard.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = _expand(pattern)
        if not names:
            raise UserError(f"{pattern} names no shard: give a folder, .tar files, brace ranges, globs or a list file")
        found |= dict.fromkeys(names)
    return list(found)


def _expand(pattern: str) -> list[str]:
    if pattern.endswith(".txt") and not is_remote(pattern):
        path = Path(pattern)
        lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
        return expand(line for line in lines if not line.startswith("#"))
    names = []
    for name in braceexpand(pattern):
        if is_remote(name):
            names += _expand_remote(name)
        elif "*" in name or "?" in name:
            base = Path(Path(name).anchor or ".")
            names += sorted(str(path.absolute()) for path in base.glob(name.removeprefix(base.anchor)))
        elif not Path(name).is_file():
            raise UserError(f"there is no shard {name}: check the path")
        else:
            names.append(str(Path(name).absolute()))
    return names


def _expand_remote(url: str) -> list[str]:
    if "*" not in url:
        return [url]
    try:
        return Remote(TIMEOUT_S).find(url)
    except OSError as error:
        raise UserError(f"{url} cannot be listed ({error}): check the address and your credentials") from error


def verify_index(index: Index, workers: int) -> None:
    """Read every local shard again and compare it with the index. Raises UserError at the first that differs."""
    jobs = [(index, number) for number in range(len(index.shards))]
    for _ in in_parallel(verify_shard, jobs, workers, "verifying"):
        pass


def verify_shard(index: Index, number: int) -> None:
    """Compare the whole of a local shard with the index. Raises UserError where it differs."""
    verify_local(index, number)
    if index.kind == TARS and file_sha256(Path(index.location(number))) != index.shards[number].sha256:
        raise index.mismatch(index.location(number))


def index_shard(folder: Path, name: str, text_as: str) -> Part:
    """What one shard holds: from `.index/` where the shard has not changed since, else by reading it. Raises UserError
    where it cannot be read."""
    kept = folder / PARTS / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow"
    if is_remote(name):
        return _index_remote(name, kept, text_as)
    path = folder / name
    stat = path.stat()
    stamp = f"{PART_VERSION}:{stat.st_size}:{stat.st_mtime_ns}:{text_as}"
    return kept_part(kept, stamp, lambda: _read_shard(name, path, text_as))


def _index_remote(url: str, kept: Path, text_as: str) -> Part:
    remote = Remote(TIMEOUT_S)
    again = retry(
        retry=retry_if_exception_type(OSError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(0.5, max=30),
        reraise=True,
    )
    local = kept.with_suffix(".tar")

    def read() -> Part:
        size = again(remote.size)(url)
        local.parent.mkdir(exist_ok=True)
        with local.open("wb") as file:
            for offset in range(0, size, PIECE_BYTES):
                file.write(again(remote.read)(url, offset, min(PIECE_BYTES, size - offset)))
        part = _read_shard(url, local, text_as)
        local.unlink()
        return part

    try:
        return kept_part(kept, f"{PART_VERSION}:{again(remote.version)(url)}:{text_as}", read)
    except OSError as error:
        raise UserError(f"shard {url} cannot be read ({error}): check the address and your credentials") from error


def _read_shard(name: str, path: Path, text_as: str) -> Part:
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            _check_end(tar, file)
            for key, members in _samples(tar):
                try:
                    rows.append(_describe(key, members, file, text_as))
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


def _samples(tar: tarfile.TarFile) -> list[tuple[str, dict[str, Member]]]:
    """Keys and members by suffix. As webdataset has it, the key ends at the first dot of the base name; but members may
    lie anywhere in the tar, as plain `tar` leaves them, and a suffix that comes again begins another sample."""
    samples: list[tuple[str, dict[str, Member]]] = []
    newest: dict[str, dict[str, Member]] = {}
    for info in tar:
        path = PurePosixPath(info.name)
        stem, dot, suffix = path.name.partition(".")
        if not (info.isfile() and stem and dot):
            continue
        key = str(path.with_name(stem))
        members = newest.get(key)
        if members is None or suffix.lower() in members:
            members = newest[key] = {}
            samples.append((key, members))
        members[suffix.lower()] = Member(info.offset_data, info.size)
    return samples


def _describe(key: str, members: dict[str, Member], file: BinaryIO, text_as: str) -> dict[str, Any]:
    """A sample's row of the index, but for its shard. Raises DataFault where it cannot be used."""
    images = [suffix for suffix in members if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise DataFault(f"{len(images)} pictures of one key" if images else "no picture")
    named = {name: members[suffix] for name, suffix in SIDE_FILES.items() if suffix in members}
    sides = {name: _bytes(file, member) for name, member in named.items()}
    return describe(key, _bytes(file, members[images[0]]), {IMAGE: members[images[0]], **named}, sides, text_as, 1)


def describe(
    key: str, image: bytes, members: dict[str, Member], sides: dict[str, bytes], text_as: str, repeats: int
) -> dict[str, Any]:
    """A sample's row of the index. Raises DataFault where it cannot be used.

    Args:
        image: the picture, or enough of it to tell its size.
        members: where the picture and its side files lie, by MEMBERS of the index.
        sides: the side files' bytes, by the same names.
    """
    info = probe(image)
    labels = parse_labels(sides, text_as)
    row: dict[str, Any] = {"key": key, "format": info.format, "width": info.width, "height": info.height, "shard": 0}
    for name in MEMBERS:
        row[f"{name}_offset"], row[f"{name}_size"] = members.get(name, (0, 0))
    return {**row, "repeats": repeats, "has_tags": int(bool(labels.tags)), "has_caption": int(bool(labels.captions))}


def side_files(picture: Path) -> dict[str, Path]:
    """Where the side files of a loose picture would lie, by their names in the index."""
    return {member: Path(beside(str(picture), suffix)) for member, suffix in SIDE_FILES.items()}


def kept_part(path: Path, stamp: str, read: Callable[[], Part]) -> Part:
    """The part that was kept under a stamp; else what `read` gives, which is kept."""
    if (part := _load_part(path, stamp)) is None:
        part = read()
        _save_part(path, part, stamp)
    return part


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
