"""What a preview shows: samples with their labels, their crop and their first draws, by the code that training runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_tools.stats.looking import spread
from data_tools.stats.sources import OpenSource, sources_of
from finetune.config import Config
from finetune.data.buckets import NONE, Crop
from finetune.data.images import probe
from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.data.prompts.config import CaptionsConfig
from finetune.data.prompts.forms import effective_mix
from finetune.data.prompts.prompter import Prompt
from finetune.data.prompts.vocabulary import Tag
from finetune.data.prompts.writing import clean
from finetune.data.samples import place_of
from finetune.data.sources import Record
from finetune.errors import DataFault, UserError
from finetune.recipe_data import Opened

THUMBNAIL_PX = 320
"""Longest side of a picture that is shown."""
WASHED = 0.75
"""Share of grey in what does not count."""


class Drawn(NamedTuple):
    """A sample's first draw of an epoch."""

    epoch: int
    prompt: Prompt
    crop: Crop
    mirrored: bool


@dataclass(frozen=True)
class Learned:
    """What is trained of a sample."""

    picture: Image.Image
    """As its first draw has it, but smaller where a side is above THUMBNAIL_PX; what does not count is washed out."""
    counts: float | None
    """The share of its pixels that counts, where it has a mask."""
    forms: dict[str, float]
    """Shares in effect for what the sample has, before any prompt is emptied."""
    no_flip: str | None
    """The pattern because of which it is never mirrored."""
    draws: list[Drawn]


@dataclass(frozen=True)
class Shown:
    """A sample that is looked at. Its texts are fit to be printed."""

    sample: int
    """Its id."""
    key: str
    source: str
    width_px: int
    """Of the stored picture, as the index has it."""
    height_px: int
    bucket: tuple[int, int] | None
    """Width and height in pixels; None where it is in no bucket."""
    per_epoch: float
    """Draws, on average."""
    labels: Labels = field(default_factory=Labels)
    """As they are stored, or as an overlay has them."""
    written: tuple[Tag, ...] = ()
    """Its tags as the recipe writes them."""
    learned: Learned | None = None
    unused: str = ""
    """Why it is not trained, where it is not."""


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for in one source."""

    source: str
    trained: int
    """Its samples that are not left out."""
    captions: CaptionsConfig
    forms: dict[str, float]
    """Shares that `mix` gives, before any prompt is emptied."""


@dataclass(frozen=True)
class Preview:
    """All that is shown."""

    name: str
    """Of the recipe."""
    config: Config
    asked: dict[str, Asked]
    """By the sources' names."""
    samples: list[Shown]


def collect(
    name: str, config: Config, opened: Opened, keys: Sequence[str] = (), *, samples: int = 12, draws: int = 20
) -> Preview:
    """Look at some samples of a recipe.

    Args:
        name: of the recipe.
        opened: the recipe's data.
        keys: of the samples; without any, samples are taken at even distances from all that are trained.
        samples: how many are taken.
        draws: of each sample, one an epoch.

    Raises:
        UserError: no sample has one of the keys, or a shard is not the one that was indexed.
    """
    opened.sources.verify()
    sources = sources_of(opened.dataset, opened.journal)
    ids = _named(opened, keys) if keys else spread(sources, samples)
    policies = (policy.prompter.config for policy in opened.policies)
    asked = [_asked(source, captions) for source, captions in zip(sources, policies, strict=True)]
    look = _Look(config, opened, sources, asked, [opened.plan.first_step(epoch) for epoch in range(draws)])
    return Preview(name, config, {source.source: source for source in asked}, [look.at(sample) for sample in ids])


class _Look(NamedTuple):
    """What every sample is looked at with."""

    config: Config
    opened: Opened
    sources: list[OpenSource]
    asked: list[Asked]
    first_steps: list[int]
    """Of every epoch."""

    def at(self, sample: int) -> Shown:
        """One sample."""
        place = place_of(sample)
        source = self.sources[place.source]
        index, row = source.stored.index, source.stored.row(place)
        bucket, times = int(source.samples.buckets[row]), source.samples.times
        shown = Shown(
            sample,
            key=clean(index.key(row)),
            source=source.stored.name,
            width_px=int(index.width[row]),
            height_px=int(index.height[row]),
            bucket=None if bucket == NONE else self._size(bucket),
            per_epoch=float(source.samples.repeats) * (1 if times is None else int(times[row])),
        )
        try:
            record = self.opened.sources.read(sample, 0, whole_shard=False)
        except DataFault as fault:
            return replace(shown, unused=f"its labels cannot be read: {fault}")
        written = self.opened.policies[place.source].prompter.stored(record.labels)
        shown = replace(shown, labels=_printable(record.labels), written=tuple(written))
        reasons = source.left_out(np.array([row]))
        if reason := next((reason for reason, (holds,) in reasons.items() if holds), ""):
            return replace(shown, unused=reason)
        try:
            return replace(shown, learned=self._learned(sample, record))
        except DataFault as fault:
            return replace(shown, unused=f"it cannot be decoded: {fault}")

    def _learned(self, sample: int, record: Record) -> Learned:
        """What is trained of a sample. Raises DataFault where it cannot be decoded."""
        preparer, info, draws = self.opened.preparer, probe(record.image), list[Drawn]()
        for epoch, step in enumerate(self.first_steps):
            bucket, draw = self.opened.plan.chapter(epoch).bucket(sample), Draw(sample, epoch, 0)
            if bucket is None:  # too small for what a later phase trains
                continue
            crop, mirrored = preparer.crop(info, record, bucket, draw)
            draws.append(Drawn(epoch, preparer.prompt(record, draw, step), crop, mirrored))
        pixels, mask = preparer.picture(record, info, draws[0].crop, draws[0].mirrored)
        picture = Image.fromarray(pixels) if mask is None else _washed(Image.fromarray(pixels), Image.fromarray(mask))
        prompter = self.opened.policies[record.source].prompter
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        return Learned(
            picture,
            counts=None if mask is None else float(mask.mean()) / 255,
            forms=prompter.forms(record.labels),
            no_flip=prompter.forbids_flip(record.labels),
            draws=draws,
        )

    def _size(self, bucket: int) -> tuple[int, int]:
        width, height = self.opened.plan.sizes[bucket].tolist()
        return width, height


def _washed(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture that is grey where a mask is black."""
    grey = Image.new("RGB", picture.size, (128, 128, 128))
    return Image.composite(picture, Image.blend(picture.convert("L").convert("RGB"), grey, WASHED), mask)


def _named(opened: Opened, keys: Sequence[str]) -> list[int]:
    """The samples of some keys, in the order of these. Raises UserError where a key has none."""
    if unknown := opened.sources.unknown(keys):
        like = opened.sources.all[0].index.key(0)
        raise UserError(f"no sample has the key {unknown[0]!r}: keys are like {like!r}")
    return list(dict.fromkeys(sample for key in keys for sample in opened.sources.find([key])))


def _asked(source: OpenSource, captions: CaptionsConfig) -> Asked:
    return Asked(source.stored.name, len(source.trained()), captions, effective_mix(captions.mix, True, True))


def _printable(labels: Labels) -> Labels:
    """Labels without characters that break a terminal or a page; captions keep their lines."""
    captions = ("\n".join(filter(None, map(clean, caption.splitlines()))) for caption in labels.captions)
    return replace(
        labels,
        tags=tuple(map(clean, labels.tags)),
        captions=tuple(captions),
        categories=tuple(map(clean, labels.categories)),
        caption_names=tuple(map(clean, labels.caption_names)),
        source=clean(labels.source),
    )
