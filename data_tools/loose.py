"""Indexing a folder tree of loose pictures in place, with their side files: nothing is copied.

Pictures are gathered into groups that stand for shards, in a shuffled order, so that a group mixes folders. What was
indexed before keeps its group; new pictures form new ones.
"""

import hashlib
import re
from pathlib import Path

import pyarrow as pa

from data_tools.indexing import (
    IMAGE_SUFFIXES,
    PARTS,
    Member,
    Part,
    Refused,
    describe,
    joined,
    kept_part,
    side_files,
)
from data_tools.progress import in_parallel
from finetune.data.hashing import hash_counters, purpose_key, shuffled_order
from finetune.data.index import FILES, IMAGE, SCHEMA, Index, Shard
from finetune.errors import DataFault, UserError

GROUP = 1000
CONCEPT = re.compile(r"(\d{1,4})_.+")
"""kohya's folders, whose pictures are drawn as often an epoch as the number says."""


def index_tree(root: Path, out: Path, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Index the pictures below `root`; the index goes to `out`, which may be the same.

    Raises:
        UserError: there are no pictures.
    """
    names = pictures(root)
    if not names:
        raise UserError(
            f"there are neither .tar files nor pictures below {root}: it has to hold "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    groups = grouped(names, _groups_before(out))
    for number, group in enumerate(groups):
        (out / PARTS / f"group-{number:06d}.names").write_text("\n".join(group), encoding="utf-8")
    jobs = [(root, out, number, group, text_as) for number, group in enumerate(groups)]
    parts = sorted(in_parallel(index_group, jobs, workers, "indexing pictures"), key=lambda part: int(part.shard.name))
    return joined(out, FILES, parts, None if out == root else root)


def pictures(root: Path) -> list[str]:
    """The pictures below a folder, as sorted paths relative to it."""
    found = (path for path in root.rglob("*") if path.suffix.lower()[1:] in IMAGE_SUFFIXES and path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in found if PARTS not in path.parts)


def grouped(names: list[str], before: list[list[str]]) -> list[list[str]]:
    """The groups there were, without what is gone, and the rest in new groups in a shuffled order."""
    there = set(names)
    kept = [[name for name in group if name in there] for group in before]
    fresh = sorted(there.difference(*kept))
    order = shuffled_order(hash_counters(purpose_key(0, "groups"), len(kept), range(len(fresh))))
    shuffled = [fresh[i] for i in order]
    return kept + [shuffled[i : i + GROUP] for i in range(0, len(shuffled), GROUP)]


def index_group(root: Path, out: Path, number: int, names: list[str], text_as: str) -> Part:
    """What a group of pictures holds: from `.index/` where no file of it has changed since, else by reading them."""
    stamp = _stamp(root, names, text_as)
    return kept_part(
        out / PARTS / f"group-{number:06d}.arrow", stamp, lambda: _read_group(root, number, names, text_as)
    )


def _groups_before(out: Path) -> list[list[str]]:
    """The names that each group was made of last time, refused ones among them."""
    paths = sorted((out / PARTS).glob("group-*.names"))
    return [path.read_text(encoding="utf-8").splitlines() for path in paths]


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
            rows.append(describe(name, image, members, sides, text_as, repeats_of(picture)))
        except DataFault as fault:
            refused.append(Refused(name, str(fault)))
    size = sum(row["image_size"] for row in rows)
    return Part(Shard(str(number), size, digest.hexdigest(), len(rows)), pa.Table.from_pylist(rows, SCHEMA), refused)


def repeats_of(picture: Path) -> int:
    """How often kohya's folder name wants a picture: 10 in `10_fox`; 1 elsewhere."""
    named = CONCEPT.fullmatch(picture.parent.name)
    return max(int(named[1]), 1) if named else 1


def _stamp(root: Path, names: list[str], text_as: str) -> str:
    digest = hashlib.sha256(text_as.encode())
    for name in names:
        for path in (root / name, *side_files(root / name).values()):
            stat = path.stat() if path.is_file() else None
            digest.update(f"{path.name}:{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()
