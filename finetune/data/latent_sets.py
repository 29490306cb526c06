"""Sets of latents: a folder for each source and each set of buckets, with an index whose rows are those of the source's
own index; and whether a set is what a run needs."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from finetune.data.buckets import NONE, PIECE, U16
from finetune.data.config import BucketsConfig, DataConfig
from finetune.data.index import MEMBERS, Index
from finetune.data.layout import SourceSamples
from finetune.data.plan import Chapter, Plan
from finetune.data.sources import Sources
from finetune.errors import UserError

VERSION = 1
REMEDY = "with `python -m data_tools latents conf=…`, with this recipe and its settings"


@dataclass(frozen=True)
class Making:
    """How the latents of a set are made, but for the buckets of rare samples, which the index has."""

    vae: str
    """Hash of the weights and the configuration that encode."""
    dtype: str
    """What the moments are rounded to: fp16 or bf16."""
    precision: str
    """In which they are computed: fp32 or bf16."""
    mirrored: bool
    """Whether mirror images are there as well."""


def set_folder(data: DataConfig, source: str, buckets: BucketsConfig) -> str:
    """Path or URL of the folder that holds the latents of a source in some buckets: it has the name of all settings
    that decide on the pixels."""
    assert data.latents is not None
    decides = [VERSION, asdict(buckets), list(data.background), data.mask]
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return f"{data.latents.rstrip('/')}/{source}/{name}"


def origins(index: Index) -> list[str]:
    """What tells the pictures of every shard, in their order, and their labels from others: the shard's hash, and where
    their members lie. Of loose pictures the hash knows no labels, so that their sizes have to tell."""
    columns = [index.numbers(f"{member}_{what}") for member in MEMBERS for what in ("offset", "size")]
    rows, found = index.first_rows.tolist(), []
    for number, shard in enumerate(index.shards):
        digest = hashlib.sha256(f"{index.kind}:{shard.sha256}:{shard.samples}:".encode())
        for column in columns:
            digest.update(column[rows[number] : rows[number + 1]].tobytes())
        found.append(digest.hexdigest())
    return found


def of_pictures(latents: Index, index: Index, source: str, *, flip: bool) -> Index:
    """The latents of all pictures of an index.

    Args:
        latents: those of these pictures, and perhaps of others that came after them.
        flip: whether mirror images are needed.

    Raises:
        UserError: they are not.
    """
    known = latents.latents or {}
    if flip and not known.get("mirrored"):
        raise UserError(
            f"the latents in {latents.folder} have no mirror images, and data.flip is above 0: set data.flip=0, or "
            "remove them and encode again"
        )
    made_of, needed = known.get("origins", []), origins(index)
    if len(made_of) < len(needed) and made_of == needed[: len(made_of)]:
        raise UserError(
            f"the index of source {source!r} has grown by {len(needed) - len(made_of)} shards that the latents in "
            f"{latents.folder} do not have: make them {REMEDY}"
        )
    if made_of[: len(needed)] != needed:
        number = next(i for i, (was, now) in enumerate(zip(made_of, needed, strict=False)) if was != now)
        raise UserError(
            f"the latents in {latents.folder} were made of another shard than {index.shards[number].name} of source "
            f"{source!r}: make them {REMEDY}"
        )
    return latents.head(len(index.shards))


def stored_buckets(chapter: Chapter, samples: SourceSamples) -> U16:
    """The bucket in which a chapter may need the latents of every sample, to train or to validate it, as a row of the
    layout's own sizes; NONE where it never does: uint16 [rows]."""
    buckets = samples.buckets.copy()
    if samples.held_out is not None:
        rows, held = samples.held_out
        buckets[rows] = np.where(np.isin(held, chapter.layout.used), held, NONE)
    return buckets


def size_table(chapter: Chapter) -> npt.NDArray[np.uint32]:
    """(width, height) in pixels by a layout's own buckets, 0 for those not in use: uint32 [NONE + 1, 2]."""
    table = np.zeros((NONE + 1, 2), dtype=np.uint32)
    table[chapter.layout.used] = chapter.layout.sizes
    return table


def check_buckets(plan: Plan, sources: Sources, epoch: int) -> None:
    """Raise UserError where what is trained from an epoch on has no latents in its bucket."""
    for chapter in plan.chapters(epoch):
        for source, samples in zip(sources.all, chapter.layout.sources, strict=True):
            if not source.latents:
                continue
            latents = source.stored(chapter.layout.first_epoch)
            wrong = _misplaced(latents, stored_buckets(chapter, samples), size_table(chapter))
            if wrong:
                raise UserError(
                    f"{wrong:,} samples of source {source.name!r} have no latents of their buckets in "
                    f"{latents.folder}, as rare buckets are merged otherwise or an overlay left them out: "
                    f"make them {REMEDY}"
                )


def check_vae(sources: Sources, vae: str) -> None:
    """Raise UserError where latents were made by another VAE than that of this hash."""
    for source in sources.all:
        for latents in source.latents.values():
            if (latents.latents or {}).get("vae") != vae:
                raise UserError(
                    f"the latents in {latents.folder} were made with another VAE than that of model.path: give "
                    f"another data.latents, and make them {REMEDY}"
                )


def _misplaced(latents: Index, buckets: U16, sizes: npt.NDArray[np.uint32]) -> int:
    """How many samples have no latents of their bucket's size, in pieces, so that memory stays flat."""
    wrong = 0
    for start in range(0, len(buckets), PIECE):
        piece = slice(start, min(start + PIECE, len(buckets)))
        wanted = sizes[buckets[piece]]
        there = np.stack([latents.width[piece], latents.height[piece]], axis=1)
        wrong += int(((wanted != there).any(axis=1) & (wanted[:, 0] > 0)).sum())
    return wrong
