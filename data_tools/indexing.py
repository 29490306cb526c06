"""Indexing: read every shard once, in parallel, and write down where its samples lie.

What was found in a shard is kept in `.index/` beside the index, so that a second run only reads what is new; shards
that were indexed before keep their numbers, and new ones come behind them.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from braceexpand import braceexpand

from data_tools.progress import in_parallel
from finetune.data.cache import PIECE_BYTES
from finetune.data.images import HEIC, JPEG_XL, probe
from finetune.data.index import (
    FILE_NAME,
    IMAGE,
    MASK,
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
from finetune.data.labels import concept, parse_labels
from finetune.data.outage import Patience
from finetune.data.remote import Remote, is_remote
from finetune.data.spans import verify_local
from finetune.errors import DataFault, UserError
from finetune.monitor.files import replace_text

# Pillow decides which of these it can read, with the plugins that are installed.
IMAGE_SUFFIXES = frozenset(
    {"apng", "avif", "bmp", "gif", "heic", "heif", "jfif", "jpeg", "jpg", "jxl", "mpo", "png", "tif", "tiff", "webp"}
)
PARTS = ".index"
REFUSED = "refused.jsonl"
PART_VERSION = 5
TIMEOUT_S = 30.0
GLOB_SIGNS = frozenset("*?[")


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
        UserError: there are no shards, or they hold latents.
    """
    names = files_below(folder, {"tar"})
    known = known_index(folder)
    if known and known.latents:
        raise UserError(f"{folder} holds latents, whose index `python -m data_tools latents conf=…` writes")
    if not names:
        raise UserError(f"there is no .tar file below {folder}: give the folder that holds the shards")
    return index_shards(names, folder, text_as, workers)


def files_below(folder: Path, suffixes: Collection[str]) -> list[str]:
    """The files of a tree that have one of these suffixes (lower case, without the dot), as sorted paths relative to
    it. Links are followed, but not round in circles; what is hidden is passed over."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        above = here.parents[: len(here.relative_to(folder).parts)]
        if here.resolve() in {other.resolve() for other in above}:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (here / name for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower()[1:] in suffixes and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def pictures_below(folder: Path) -> list[str]:
    """The pictures of a tree, as `files_below` has them, without those that are masks of others."""
    return [name for name in files_below(folder, IMAGE_SUFFIXES) if not name.rpartition(".")[0].endswith(f".{MASK}")]


def index_shards(names: Sequence[str], folder: Path, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Index shards by their URLs, absolute paths, or paths relative to `folder`, where the index goes."""
    folder.mkdir(parents=True, exist_ok=True)
    given, before = set(names), {shard.name: None for shard in known_shards(folder)}
    ordered = [name for name in before if name in given] + [name for name in names if name not in before]
    jobs = [(folder, name, text_as) for name in ordered]
    by_name = {part.shard.name: part for part in in_parallel(index_shard, jobs, workers, "indexing shards")}
    return joined(folder, TARS, [by_name[name] for name in ordered])


def joined(folder: Path, kind: str, parts: Sequence[Part], root: Path | None = None) -> tuple[Index, list[Refused]]:
    """Write the index of some parts. It, and what was refused."""
    usable = [part for part in parts if part.shard.samples]
    index = write_index(folder, kind, [part.shard for part in usable], [part.table for part in usable], root)
    return index, [refused for part in parts for refused in part.refused]


def write_refused(folder: Path, refused: Iterable[Refused]) -> Path:
    """Write down what was left out, a line each. The file."""
    path = folder / REFUSED
    replace_text(path, "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in refused))
    return path


def known_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards of the index that is there, in their order."""
    index = known_index(folder)
    return index.shards if index else ()


def known_index(folder: Path) -> Index | None:
    """The index that is there; None where it has to be written anew."""
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        return Index.load(folder)
    except UserError:  # of another version, empty or damaged
        return None


def expand(patterns: Iterable[str]) -> list[str]:
    """The shards that folders, brace ranges, globs and list files name, each once.

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


def utf8(name: str) -> str:
    """A file's name in UTF-8, with bytes that are none written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _expand(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.suffix == ".txt" and path.is_file():
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return expand(line for line in lines if line and not line.startswith("#"))
    if path.is_dir():
        return [str(path.absolute() / name) for name in files_below(path, {"tar"})]
    if path.is_file():
        return [str(path.absolute())]
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern} has braces without their counterpart: write ranges as {{000..127}}") from error
    return [found for name in names for found in (_expand_remote(name) if is_remote(name) else _expand_local(name))]


def _expand_local(name: str) -> list[str]:
    if Path(name).is_file():
        return [str(Path(name).absolute())]
    if not GLOB_SIGNS & set(name):
        raise UserError(f"there is no shard {name}: check the path")
    base = Path(Path(name).anchor or ".")
    return sorted(str(path.absolute()) for path in base.glob(name.removeprefix(base.anchor)) if path.is_file())


def _expand_remote(url: str) -> list[str]:
    if "*" not in url:
        return [url]
    try:
        return Remote(TIMEOUT_S).find(url)
    except OSError as error:
        raise UserError(f"{url} cannot be listed ({error}): check the address and your credentials") from error


def verify_index(index: Index, workers: int) -> int:
    """Read every local shard again and compare it with the index. How many there are; UserError at the first that
    differs."""
    local = [number for number in range(len(index.shards)) if not is_remote(index.location(number))]
    for _ in in_parallel(verify_shard, [(index, number) for number in local], workers, "verifying"):
        pass
    return len(local)


def verify_shard(index: Index, number: int) -> None:
    """Compare the whole of a local shard with the index; of loose pictures, the size of every file. Raises UserError
    where it differs."""
    verify_local(index, number)
    if index.kind == TARS:
        if file_sha256(Path(index.location(number))) != index.shards[number].sha256:
            raise index.mismatch(index.location(number))
        return
    for row in range(*index.first_rows[number : number + 2]):
        for span in index.spans(row).values():
            if not Path(span.location).is_file() or Path(span.location).stat().st_size != span.size:
                raise index.mismatch(span.location)


def index_shard(folder: Path, name: str, text_as: str) -> Part:
    """What one shard holds: from `.index/` where the shard has not changed since, else by reading it. Raises UserError
    where it cannot be read."""
    kept = folder / PARTS / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow"
    try:
        if is_remote(name):
            return _index_remote(name, kept, text_as)
        path = folder / name
        stat = path.stat()
        stamp = f"{PART_VERSION}:{stat.st_size}:{stat.st_mtime_ns}:{text_as}"
        return kept_part(kept, stamp, lambda: _read_shard(name, path, text_as))
    except OSError as error:
        remedy = "check the address and your credentials" if is_remote(name) else "check the disk and its permissions"
        raise UserError(f"shard {name} cannot be read ({error}): {remedy}") from error


def _index_remote(url: str, kept: Path, text_as: str) -> Part:
    remote = Remote(TIMEOUT_S)
    again = Patience().for_a_while
    local = kept.with_suffix(".part")

    def read() -> Part:
        size = again(lambda: remote.size(url))
        local.parent.mkdir(exist_ok=True)
        try:
            with local.open("wb") as file:
                for offset in range(0, size, PIECE_BYTES):
                    piece = partial(remote.read, url, offset, min(PIECE_BYTES, size - offset))
                    file.write(again(piece))
            return _read_shard(url, local, text_as)
        finally:
            local.unlink(missing_ok=True)

    return kept_part(kept, f"{PART_VERSION}:{again(lambda: remote.version(url))}:{text_as}", read)


def _read_shard(name: str, path: Path, text_as: str) -> Part:
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    samples: list[tuple[str, dict[str, Member]]] = []
    try:
        samples = _samples(path)
    except (tarfile.TarError, ValueError) as error:  # ValueError: numbers in headers that are none
        refused.append(Refused(name, f"unfinished or damaged tar: {error}"))
    with path.open("rb") as file:
        for key, members in samples:
            try:
                rows.append(_describe(key, members, file, text_as))
            except DataFault as fault:
                refused.append(Refused(f"{name}: {key}", str(fault)))
    shard = Shard(name, path.stat().st_size, file_sha256(path), len(rows))
    return Part(shard, pa.Table.from_pylist(rows, SCHEMA), refused)


def _samples(path: Path) -> list[tuple[str, dict[str, Member]]]:
    """Keys and members by suffix. As webdataset has it, the key ends at the first dot of the base name; but members may
    lie anywhere in the tar, as plain `tar` leaves them, and a suffix that comes again begins another sample. Members
    whose bytes do not lie in one piece behind their header, links and sparse files, are passed over."""
    samples: list[tuple[str, dict[str, Member]]] = []
    newest: dict[str, dict[str, Member]] = {}
    for info in _members(path):
        name = PurePosixPath(info.name)
        stem, dot, suffix = name.name.partition(".")
        if not (info.isfile() and stem and dot) or info.issparse():
            continue
        key = str(name.with_name(stem))
        members = newest.get(key)
        if members is None or suffix.lower() in members:
            members = newest[key] = {}
            samples.append((key, members))
        members[suffix.lower()] = Member(info.offset_data, info.size)
    return samples


def _members(path: Path) -> list[tarfile.TarInfo]:
    """All members of a tar. Raises ReadError unless a block of zeros follows the last: one cut short would pass
    otherwise."""
    # A name that is not UTF-8 is told by its bytes.
    with tarfile.open(path, "r:", errors="backslashreplace") as tar, path.open("rb") as file:
        members = tar.getmembers()
        file.seek(tar.offset)
        if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise tarfile.ReadError(f"no end after {len(members)} members")
    return members


def _describe(key: str, members: dict[str, Member], file: BinaryIO, text_as: str) -> dict[str, Any]:
    """A sample's row of the index, but for its shard. Raises DataFault where it cannot be used."""
    images = [suffix for suffix in members if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise DataFault(f"{len(images)} pictures of one key" if images else "no picture")
    named = {name: members[suffix] for name, suffix in SIDE_FILES.items() if suffix in members}
    sides = {name: _bytes(file, member) for name, member in named.items()}
    return describe(key, _bytes(file, members[images[0]]), {IMAGE: members[images[0]], **named}, sides, text_as, "")


def describe(
    key: str, image: bytes, members: dict[str, Member], sides: dict[str, bytes], text_as: str, path: str
) -> dict[str, Any]:
    """A sample's row of the index. Raises DataFault where it cannot be used.

    Args:
        image: the picture, or enough of it to tell its size.
        members: where the picture and its side files lie, by MEMBERS of the index.
        sides: the side files' bytes, by the same names.
        path: where the picture lies in its tree, if it does; its folder may ask for repeats.
    """
    info = probe(image)
    labels = parse_labels(sides, text_as)
    row: dict[str, Any] = {"key": key, "format": info.format, "width": info.width, "height": info.height, "shard": 0}
    for name in MEMBERS:
        row[f"{name}_offset"], row[f"{name}_size"] = members.get(name, (0, 0))
    repeats, _ = concept(labels.source or path)
    return {**row, "repeats": repeats, "has_tags": int(bool(labels.tags)), "has_caption": int(bool(labels.captions))}


def side_files(picture: Path) -> dict[str, Path]:
    """Where the side files of a loose picture would lie, by their names in the index."""
    return {member: Path(beside(str(picture), suffix)) for member, suffix in SIDE_FILES.items()}


def kept_part(path: Path, stamp: str, read: Callable[[], Part]) -> Part:
    """The part that was kept under a stamp; else what `read` gives, which is kept."""
    if (part := load_part(path, stamp)) is None:
        part = read()
        save_part(path, part, stamp)
    return part


def _bytes(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def save_part(path: Path, part: Part, stamp: str) -> None:
    """Keep a part under a stamp."""
    path.parent.mkdir(exist_ok=True)
    told = {"shard": asdict(part.shard), "refused": part.refused, "plugins": _plugins()}
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as sink:
        table = part.table.replace_schema_metadata({"stamp": stamp, "part": json.dumps(told)})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    temporary.replace(path)


def load_part(path: Path, stamp: str) -> Part | None:
    """The part that was kept under a stamp; None where there is none, or where what it lacks may be read by now."""
    if not path.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError):  # damaged: it is read anew
        return None
    if table.schema.metadata[b"stamp"].decode() != stamp:
        return None
    told = json.loads(table.schema.metadata[b"part"])
    if told["refused"] and told["plugins"] != _plugins():
        return None
    refused = [Refused(*entry) for entry in told["refused"]]
    return Part(Shard(**told["shard"]), table.replace_schema_metadata(None), refused)


def _plugins() -> list[str]:
    """The plugins that are installed: what was refused for want of one may be read with it."""
    return [plugin.package for plugin in (HEIC, JPEG_XL) if find_spec(plugin.module.partition(".")[0])]
