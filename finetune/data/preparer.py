"""From a draw to its picture and prompt. Every choice for a draw comes from a counter-based stream of its own, so it
never matters who prepares it, or when. What looks at a run from outside uses this too, and needs no torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.data.buckets import Crop, fit
from finetune.data.config import DataConfig
from finetune.data.hashing import CounterRng, purpose_key
from finetune.data.images import ImageInfo, load, load_mask, load_with_alpha, probe
from finetune.data.latents import Latents, unpack
from finetune.data.plan import Draw, MicroBatch, Plan
from finetune.data.prompts.length import TokenLimit
from finetune.data.prompts.prompter import Policy, Prompt
from finetune.data.samples import place_of
from finetune.data.sources import Record, Sources
from finetune.errors import DataFault, UserError
from finetune.redact import redacted

NEAR_TRIED, FAR_TRIED, SCANNED = 8, 24, 1000


class Facts(NamedTuple):
    """What a run tells of a draw, summed up with others."""

    tokens: int
    """Of its prompt."""
    tags: int
    """In its prompt."""
    dropped_tags: int
    """That its prompt could have had."""
    truncated: bool
    """Whether the prompt would have been too long."""
    cached: bool | None
    """As `Record` has it."""


class Sample(NamedTuple):
    """A decoded draw."""

    pixels: npt.NDArray[np.uint8] | None
    """[H, W, 3]; None where there are latents."""
    prompt: str
    size_and_crop: tuple[int, int, int, int, int, int]
    """SDXL's conditioning (arXiv 2307.01952, section 2.2) in the order of diffusers' `add_time_ids`: height and width
    of the picture, top and left of the crop in the scaled (and, where it is, mirrored) picture, height and width of
    the bucket; pixels."""
    loss_weight: float
    facts: Facts
    latents: Latents | None
    """Where they are read in the picture's place."""
    mask: npt.NDArray[np.uint8] | None
    """[H, W]: how much each pixel counts in the loss, 255 fully and 0 not at all; None where all count, or where there
    are latents."""


class BadSample(NamedTuple):
    """A draw whose sample could not be used, and the one that took its place."""

    step: int
    """Counted from 1, as in metrics and ledger."""
    slot: int
    sample: int
    key: str
    shard: str
    reason: str
    """EXCLUDED or QUARANTINED where nothing is wrong with its data."""
    substitute: int


class _Task(NamedTuple):
    """What a micro-batch's draws are prepared for."""

    step: int
    """Counted from 0."""
    micro_batch: MicroBatch
    at_hand: set[tuple[int, int]]
    """(source, shard) of what is fetched as a whole."""
    excluded: Mapping[int, str]


class Preparer:
    """Turns draws into samples: the choices are functions of (seed, draw)."""

    def __init__(
        self,
        plan: Plan,
        sources: Sources,
        data: DataConfig,
        policies: Sequence[Policy],
        limit: TokenLimit,
        seed: int,
    ) -> None:
        """Keep what choices are made by.

        Args:
            policies: one per source.
            limit: of every prompt.

        Raises:
            UserError: the recipe asks for masks, and no sample has one.
        """
        if data.mask == "member":
            sources.check_masks()
        self._plan = plan
        self._sources = sources
        self._data = data
        self._policies = policies
        self._limit = limit
        self._crop_key = purpose_key(seed, "crop and flip")
        self._substitute_key = purpose_key(seed, "substitute")

    def prepare(
        self, step: int, micro_batch: MicroBatch, excluded: Mapping[int, str], bad: list[BadSample]
    ) -> list[Sample]:
        """All samples of a micro-batch; what had to be replaced is added to `bad`.

        Args:
            step: counted from 0, as in the plan.
            excluded: samples that must not be used, and why.

        Raises:
            UserError: no sample of the bucket can be used, or a shard is not the one that was indexed.
        """
        task = _Task(step, micro_batch, self._plan.shards_in(*micro_batch.window), excluded)
        samples = []
        for slot, draw in enumerate(micro_batch.draws, micro_batch.first_slot):
            try:
                samples.append(self._usable(draw.sample, draw, task))
            except DataFault as fault:
                other, sample = self._substitute(draw, task)
                key, shard = self._sources.key(draw.sample), redacted(self._sources.shard_name(draw.sample))
                bad.append(BadSample(step + 1, slot, draw.sample, key, shard, str(fault), other))
                samples.append(sample)
        return samples

    def info(self, record: Record) -> ImageInfo:
        """The size of a sample's picture. Raises DataFault where it cannot be opened."""
        return ImageInfo(*record.size, "") if record.size else probe(record.image)

    def crop(self, info: ImageInfo, record: Record, bucket: int, draw: Draw) -> tuple[Crop, bool]:
        """How a draw cuts a sample's picture to its bucket, and whether it is mirrored after that."""
        flip, across, down = CounterRng(self._crop_key, *_counters(draw)).uniforms(3)
        if not self._data.random_crop:
            across = down = 0.5
        width, height = (int(side) for side in self._plan.sizes[bucket])
        mirrored = bool(flip < self._data.flip) and not self._policies[record.source].prompter.forbids_flip(
            record.labels
        )
        return fit(info.width, info.height, width, height, across, down), mirrored

    def picture(
        self, record: Record, info: ImageInfo, crop: Crop, mirrored: bool
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        """The pixels and the mask of a `Sample`. Raises DataFault where the picture or its mask cannot be used."""
        return load_picture(self._data, record.image, record.mask, info, crop, mirrored)

    def prompt(self, record: Record, draw: Draw, step: int) -> Prompt:
        """The prompt that a draw gives to a sample in a step, counted from 0."""
        path = record.labels.source or record.key
        return self._policies[record.source].prompter.draw(record.labels, path, draw, step, self._limit)

    def _usable(self, sample: int, draw: Draw, task: _Task) -> Sample:
        """A sample with the choices of a draw. Raises DataFault where it cannot or must not be used."""
        if sample in task.excluded:
            raise DataFault(task.excluded[sample])
        place = place_of(sample)
        record = self._sources.read(sample, draw.epoch, whole_shard=(place.source, place.shard) in task.at_hand)
        info = self.info(record)
        crop, mirrored = self.crop(info, record, task.micro_batch.bucket, draw)
        latents = unpack(record.image, mirrored=mirrored) if record.size else None
        pixels, mask = (None, None) if latents else self.picture(record, info, crop, mirrored)
        left = crop.scaled_width - crop.left - crop.width if mirrored else crop.left
        conditioning = (info.height, info.width, crop.top, left, crop.height, crop.width)
        prompt = self.prompt(record, draw, task.step)
        facts = Facts(prompt.tokens, len(prompt.tags), prompt.dropped, prompt.truncated, record.cached)
        weight = self._policies[record.source].loss_weight
        return Sample(pixels, prompt.text, conditioning, weight, facts, latents, mask)

    def _substitute(self, draw: Draw, task: _Task) -> tuple[int, Sample]:
        """The (id, sample) that takes a bad draw's place: of the same bucket, with the draw's own choices."""
        bits = CounterRng(self._substitute_key, *_counters(draw)).bits(NEAR_TRIED + FAR_TRIED).tolist()
        # Where most of a bucket is excluded, chance finds no other, but a look at its draws one after the other does.
        bits += [bits[-1] + further for further in range(SCANNED)]
        for tried, random in enumerate(bits):
            other = self._plan.neighbour(task.micro_batch, random, near=tried < NEAR_TRIED).sample
            try:
                return other, self._usable(other, draw, task)
            except DataFault:
                continue
        width, height = self._plan.sizes[task.micro_batch.bucket]
        raise UserError(
            f"{len(bits)} samples of the {width}×{height} bucket in a row could not be used: "
            "check the shards with `python -m data_tools index --verify`, and what data.exclude names"
        )


def load_picture(
    data: DataConfig, image: bytes, mask: bytes | None, info: ImageInfo, crop: Crop, mirrored: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """The pixels and the mask of a `Sample`.

    Args:
        data: what the recipe says about backgrounds and masks.
        mask: the picture beside it that says how much each of its pixels counts.

    Raises:
        DataFault: the picture or its mask cannot be used.
    """
    red, green, blue = data.background
    if data.mask == "alpha":
        return load_with_alpha(image, crop, mirrored, (red, green, blue))
    pixels = load(image, crop, mirrored, (red, green, blue))
    if data.mask == "none" or mask is None:
        return pixels, None
    return pixels, load_mask(mask, info, crop, mirrored)


def _counters(draw: Draw) -> tuple[int, int, int]:
    return draw.epoch, draw.sample, draw.repeat
