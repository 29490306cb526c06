"""Packing a folder tree of pictures and their side files into webdataset shards.

Which files go into which shard is a function of the tree alone, so a build that was cut short goes on where it stopped:
a shard whose inputs are unchanged is not written again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from data_tools.indexing import IMAGE_SUFFIXES, PARTS, Refused, index_folder, pictures_below, side_files, utf8
from data_tools.progress import in_parallel
from finetune.data.buckets import fit
from finetune.data.hashing import hash_counters, purpose_key, shuffled_order
from finetune.data.images import load, load_mask, probe
from finetune.data.index import MASK, SIDE_FILES, Index
from finetune.data.labels import parse_json, parse_labels
from finetune.errors import DataFault, UserError

MIB = 2**20
CHECK_PX = 64


@dataclass(frozen=True)
class Source:
    """A picture of the tree."""

    key: str
    """Its name in the shard: a number in the order of the tree, which is safe to use anywhere."""
    path: Path
    relative: str


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is to hold."""

    path: Path
    sources: list[Source]
    digest: str
    """Of names, sizes and times of all files that go in."""


def build(source: Path, out: Path, *, shard_mib: int, text_as: str, workers: int) -> tuple[Index, list[Refused]]:
    """Pack every picture below `source` with its side files into `out`, and index it.

    Raises:
        UserError: there is nothing to pack, or `out` holds shards of something else.
    """
    plans = plan_shards(source, out, shard_mib * MIB, text_as)
    out.mkdir(parents=True, exist_ok=True)
    foreign = set(out.glob("*.tar")) - {plan.path for plan in plans}
    if foreign:
        raise UserError(
            f"{out} holds {min(foreign).name}, which is not of this build: remove it or give another folder"
        )
    jobs = [(plan, text_as) for plan in plans]
    refused = [r for batch in in_parallel(write_shard, jobs, workers, "writing shards") for r in batch]
    index, more = index_folder(out, text_as, workers)
    return index, sorted(refused + more)


def plan_shards(source: Path, out: Path, shard_bytes: int, text_as: str) -> list[ShardPlan]:
    """The tree's pictures in a shuffled order, cut into shards of about `shard_bytes`. Raises UserError if there are
    none."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the folder that holds the pictures")
    names = pictures_below(source)
    if not names:
        raise UserError(
            f"there are no pictures below {source}: it has to hold {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    sources = [Source(f"{i:09d}", source / name, utf8(name)) for i, name in enumerate(names)]
    order = shuffled_order(hash_counters(purpose_key(0, "shards"), range(len(sources))))

    groups: list[list[Source]] = [[]]
    room = shard_bytes
    for i in order:
        size = sources[i].path.stat().st_size
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(sources[i])
        room -= size
    return [
        ShardPlan(out / f"shard-{number:05d}.tar", group, _digest(group, text_as))
        for number, group in enumerate(groups)
    ]


def write_shard(plan: ShardPlan, text_as: str) -> list[Refused]:
    """Write one shard unless it is there already; the pictures left out, with the reason."""
    record = plan.path.parent / PARTS / f"{plan.path.stem}.json"
    if plan.path.exists() and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["digest"] == plan.digest:
            return [Refused(*entry) for entry in kept["refused"]]
    refused: list[Refused] = []
    temporary = plan.path.with_suffix(".tar.tmp")
    # A fixed owner and time make the same input give the same bytes.
    with webdataset.TarWriter(str(temporary), encoder=False, user="", group="", mtime=0.0) as tar:
        for source in plan.sources:
            try:
                tar.write(_members(source, text_as))
            except DataFault as fault:
                refused.append(Refused(source.relative, str(fault)))
    temporary.replace(plan.path)
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"digest": plan.digest, "refused": refused}), encoding="utf-8")
    return refused


def _members(source: Source, text_as: str) -> dict[str, Any]:
    """A sample as webdataset writes it: the picture's own bytes and its mask's, and its labels as JSON with all else
    that the JSON side file held. Raises DataFault where the picture or its mask cannot be decoded whole or the side
    files cannot be read."""
    data = source.path.read_bytes()
    info = probe(data)
    crop = fit(info.width, info.height, CHECK_PX, CHECK_PX, 0.5, 0.5)
    load(data, crop, False, (255, 255, 255))
    files = {member: path for member, path in side_files(source.path).items() if path.is_file()}
    sides = {member: path.read_bytes() for member, path in files.items()}
    masks = {SIDE_FILES[MASK]: sides.pop(MASK)} if MASK in sides else {}
    for mask in masks.values():
        load_mask(mask, info, crop, False)
    labels = parse_labels(sides, text_as)
    fields = parse_json(sides["json"]) if "json" in sides else {}
    fields.pop("captions", None)
    fields |= {**labels.fields(), "source": source.relative}
    return {
        "__key__": source.key,
        source.path.suffix.lower()[1:]: data,
        **masks,
        "json": json.dumps(fields, ensure_ascii=False).encode(),
    }


def _digest(sources: list[Source], text_as: str) -> str:
    digest = hashlib.sha256(text_as.encode())
    for source in sources:
        for path in (source.path, *side_files(source.path).values()):
            stat = path.stat() if path.is_file() else None
            digest.update(f"{source.relative}{path.suffix}:{stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return digest.hexdigest()
