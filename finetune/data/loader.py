"""Micro-batches for one rank: read, decode, crop, word and noise the draws that the plan names.

A map-style dataset over micro-batches: workers hold no state, so nothing that was prefetched can be lost, and any
number of workers gives the same batches. Every choice for a draw comes from a counter-based stream of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.buckets import fit
from finetune.data.config import CaptionsConfig, DataConfig
from finetune.data.hashing import CounterRng, hash_counters, purpose_key, to_unit
from finetune.data.images import load, probe
from finetune.data.labels import Labels
from finetune.data.plan import MicroBatch, Plan
from finetune.data.prompts import make_prompt
from finetune.data.source import ShardSource
from finetune.errors import DataFault, UserError

Tokenize = Callable[[list[str]], npt.NDArray[np.int64]]
SUBSTITUTES_TRIED = 32


class BadSample(NamedTuple):
    """A draw whose sample could not be used, and the one that took its place."""

    step: int
    slot: int
    sample: int
    key: str
    shard: str
    reason: str
    substitute: int


class Batch(NamedTuple):
    """One micro-batch of m samples in a bucket of W×H pixels, f the VAE's factor."""

    pixels: Tensor
    """uint8 [m, 3, H, W]"""
    input_ids: Tensor
    """int64 [m, chunks, 77]"""
    timesteps: Tensor
    """int64 [m]"""
    noise: Tensor
    """float32 [m, C, H/f, W/f], like the two that follow"""
    perturbation: Tensor
    posterior_noise: Tensor
    bad: list[BadSample]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device; pinned memory is copied asynchronously."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            moved(self.pixels),
            moved(self.input_ids),
            moved(self.timesteps),
            moved(self.noise),
            moved(self.perturbation),
            moved(self.posterior_noise),
            self.bad,
        )


@dataclass(frozen=True)
class LatentShape:
    """What noise has to look like."""

    channels: int
    factor: int
    """Pixels that one latent spans."""

    def of(self, width: int, height: int) -> tuple[int, int, int]:
        """[C, h, w] for a picture of this size in pixels."""
        return self.channels, height // self.factor, width // self.factor


class Sample(NamedTuple):
    """A decoded draw."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""
    prompt: str


class Preparer:
    """Turns draws into samples: the choices are functions of (seed, epoch, sample), never of who prepares it."""

    def __init__(self, plan: Plan, source: ShardSource, data: DataConfig, captions: CaptionsConfig, seed: int) -> None:
        self._plan = plan
        self._source = source
        self._data = data
        self._captions = captions
        self._crop_key = purpose_key(seed, "crop and flip")
        self._prompt_key = purpose_key(seed, "prompt")
        self._substitute_key = purpose_key(seed, "substitute")

    def sample(self, row: int, bucket: int, epoch: int, sample: int) -> Sample:
        """Decode a row with the choices of the draw (epoch, sample). Raises DataFault, or OSError from the disk."""
        labels: Labels = self._source.labels(row)
        data = self._source.image(row)
        info = probe(data)
        flip, across, down = CounterRng(self._crop_key, epoch, sample).uniforms(3)
        if not self._data.random_crop:
            across = down = 0.5
        width, height = (int(side) for side in self._plan.sizes[bucket])
        crop = fit(info.width, info.height, width, height, across, down)
        red, green, blue = self._data.background
        pixels = load(data, crop, bool(flip < self._data.flip), (red, green, blue))
        return Sample(pixels, make_prompt(labels, self._captions, CounterRng(self._prompt_key, epoch, sample)))

    def substitute(self, bucket: int, epoch: int, sample: int) -> tuple[int, Sample]:
        """The (row, sample) that takes a bad draw's place: of the same bucket, with the draw's own choices."""
        draws = int(self._plan.draws_per_epoch[bucket])
        rng = CounterRng(self._substitute_key, epoch, sample)
        for _ in range(SUBSTITUTES_TRIED):
            row, _ = self._plan.draw(bucket, epoch * draws + rng.integer(draws))
            try:
                return row, self.sample(row, bucket, epoch, sample)
            except DataFault:
                continue
        width, height = self._plan.sizes[bucket]
        raise UserError(
            f"{SUBSTITUTES_TRIED} samples of the {width}×{height} bucket in a row could not be used: "
            "check the shards with `python -m data_tools index --verify`"
        )


class MicroBatches(Dataset[Batch]):
    """This rank's micro-batches from a step on; item i is number i % n of step first + i // n."""

    def __init__(
        self,
        plan: Plan,
        source: ShardSource,
        tokenize: Tokenize,
        data: DataConfig,
        captions: CaptionsConfig,
        latents: LatentShape,
        *,
        timesteps: int,
        seed: int,
        steps: range,
        rank: int,
        world: int,
    ) -> None:
        self._plan = plan
        self._source = source
        self._tokenize = tokenize
        self._latents = latents
        self._timesteps = timesteps
        self._steps = steps
        self._rank = rank
        self._world = world
        self._preparer = Preparer(plan, source, data, captions, seed)
        self._noise_key = purpose_key(seed, "noise")
        self._timestep_key = purpose_key(seed, "timestep")

    def __len__(self) -> int:
        return len(self._steps) * self._per_step

    @property
    def _per_step(self) -> int:
        return self._plan.micro_batches_per_step // self._world

    def __getitem__(self, item: int) -> Batch:
        step = self._steps[item // self._per_step]
        micro_batch = self._plan.step(step)[self._rank + item % self._per_step * self._world]
        return self.prepare(step, micro_batch)

    def prepare(self, step: int, micro_batch: MicroBatch) -> Batch:
        """Prepare one micro-batch of a step."""
        slots = micro_batch.first_slot + np.arange(self._plan.micro_batch)
        bad: list[BadSample] = []
        samples = [self._draw(step, int(slot), micro_batch, i, bad) for i, slot in enumerate(slots)]
        pixels = np.stack([s.pixels for s in samples]).transpose(0, 3, 1, 2)
        noise, perturbation, posterior_noise = self._draw_noise(micro_batch)
        return Batch(
            pixels=torch.from_numpy(np.ascontiguousarray(pixels)),
            input_ids=torch.from_numpy(self._tokenize([s.prompt for s in samples])),
            timesteps=torch.from_numpy(
                (to_unit(hash_counters(self._timestep_key, step, slots)) * self._timesteps).astype(np.int64)
            ),
            noise=noise,
            perturbation=perturbation,
            posterior_noise=posterior_noise,
            bad=bad,
        )

    def _draw(self, step: int, slot: int, micro_batch: MicroBatch, i: int, bad: list[BadSample]) -> Sample:
        row, epoch, sample = int(micro_batch.rows[i]), int(micro_batch.epochs[i]), int(micro_batch.samples[i])
        try:
            return self._preparer.sample(row, micro_batch.bucket, epoch, sample)
        except DataFault as fault:
            other, prepared = self._preparer.substitute(micro_batch.bucket, epoch, sample)
            index = self._source.index
            shard = index.shards[int(index.shard[row])].name
            taken = int(index.sample_ids[other])
            bad.append(BadSample(step, slot, sample, index.key(row), shard, str(fault), taken))
            return prepared

    def _draw_noise(self, micro_batch: MicroBatch) -> list[Tensor]:
        """Noise, perturbation and posterior noise, each float32 [m, C, h, w]."""
        width, height = self._plan.sizes[micro_batch.bucket]
        shape = (3, *self._latents.of(int(width), int(height)))
        draws = [
            CounterRng(self._noise_key, int(epoch), int(sample)).normal(shape)
            for epoch, sample in zip(micro_batch.epochs, micro_batch.samples, strict=True)
        ]
        return list(torch.from_numpy(np.stack(draws, axis=1)))  # [3, m, C, h, w]


def open_loader(dataset: MicroBatches, config: DataConfig, pin: bool) -> Iterator[Batch]:
    """Micro-batches in the plan's order, prepared ahead by worker processes."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=pin,
    )
    return iter(loader)
