"""Indexing a folder tree of loose pictures in place, with their side files: nothing is copied.

Pictures are gathered into groups that stand for shards, in a shuffled order, so that a group mixes folders. What was
indexed before keeps its group; new pictures form new ones.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from data_tools.indexing import (
    IMAGE_SUFFIXES,
    PART_VERSION,
    PARTS,
    Member,
    Part,
    Refused,
    describe,
    joined,
    kept_part,
    pictures_below,
    side_files,
    utf8,
)
from data_tools.progress import in_parallel
from finetune.data.hashing import hash_counters, purpose_key, shuffled_order
from finetune.data.index import FILES, IMAGE, SCHEMA, Index, Shard
from finetune.errors import DataFault, UserError

GROUP = 1000


def index_tree(root: Path, out: Path, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Index the pictures below `root`; the index goes to `out`, which may be the same.

    Raises:
        UserError: there are no pictures.
    """
    names = pictures_below(root)
    if not names:
        raise UserError(
            f"there are neither .tar files nor pictures below {root}: it has to hold "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    readable = [name for name in names if utf8(name) == name]
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    groups = grouped(readable, _groups_before(out))
    for number, group in enumerate(groups):
        _write_names(out / PARTS / f"group-{number:06d}.json", group)
    jobs = [(root, out, number, group, text_as) for number, group in enumerate(groups)]
    parts = sorted(in_parallel(index_group, jobs, workers, "indexing pictures"), key=lambda part: int(part.shard.name))
    index, refused = joined(out, FILES, parts, None if out == root else root)
    unreadable = sorted(set(names).difference(readable))
    return index, refused + [Refused(utf8(name), "its name is not UTF-8") for name in unreadable]


def grouped(names: list[str], before: list[list[str]]) -> list[list[str]]:
    """The groups there were, without what is gone, and the rest in new groups in a shuffled order."""
    there = set(names)
    kept = [[name for name in group if name in there] for group in before]
    fresh = sorted(there.difference(*kept))
    order = shuffled_order(hash_counters(purpose_key(0, "groups"), len(kept), range(len(fresh))))
    shuffled = [fresh[i] for i in order]
    return kept + [shuffled[i : i + GROUP] for i in range(0, len(shuffled), GROUP)]


def index_group(root: Path, out: Path, number: int, names: list[str], text_as: str) -> Part:
    """What a group of pictures holds: from `.index/` where no file of it has changed since, else by reading them.

    Raises:
        UserError: one of them cannot be read.
    """
    kept = out / PARTS / f"group-{number:06d}.arrow"
    try:
        return kept_part(kept, _stamp(root, names, text_as), lambda: _read_group(root, number, names, text_as))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error}): check the disk and its permissions") from error


def _groups_before(out: Path) -> list[list[str]]:
    """The names that each group was made of last time, refused ones among them."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / PARTS).glob("group-*.json"))]


def _write_names(path: Path, names: list[str]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(names), encoding="utf-8")
    temporary.replace(path)


def _read_group(root: Path, number: int, names: list[str], text_as: str) -> Part:
    rows, refused = [], []
    digest = hashlib.sha256()
    for name in names:
        picture = root / name
        image = picture.read_bytes()
        digest.update(f"{name}\0{len(image)}\0".encode())
        sides = {member: path.read_bytes() for member, path in side_files(picture).items() if path.is_file()}
        members = {IMAGE: Member(0, len(image)), **{m: Member(0, len(data)) for m, data in sides.items()}}
        try:
            rows.append(describe(name, image, members, sides, text_as, name))
        except DataFault as fault:
            refused.append(Refused(name, str(fault)))
    size = sum(row["image_size"] for row in rows)
    return Part(Shard(str(number), size, digest.hexdigest(), len(rows)), pa.Table.from_pylist(rows, SCHEMA), refused)


def _stamp(root: Path, names: list[str], text_as: str) -> str:
    digest = hashlib.sha256(f"{PART_VERSION}:{text_as}".encode())
    for name in names:
        for path in (root / name, *side_files(root / name).values()):
            stat = path.stat() if path.is_file() else None
            known = stat and (stat.st_size, stat.st_mtime_ns)
            digest.update(f"{path.relative_to(root)}:{known}\n".encode())
    return digest.hexdigest()
