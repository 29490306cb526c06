"""Micro-batches for one rank: the draws that the plan names, prepared, tokenized and with their noise.

A map-style dataset over micro-batches: workers hold no state, so nothing that was prefetched can be lost, and any
number of workers gives the same batches. Every choice for a draw comes from a counter-based stream of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from finetune.data.config import DataConfig
from finetune.data.hashing import CounterRng, hash_counters, purpose_key, to_unit
from finetune.data.journal import Journal
from finetune.data.plan import MicroBatch, Plan
from finetune.data.preparer import BadSample, Preparer
from finetune.errors import RankError, UserError


class Tokenizer(Protocol):
    """What turns prompts into a model's tokens."""

    max_tokens: int
    """The most tokens of a prompt."""

    def __call__(self, prompts: list[str], /) -> npt.NDArray[np.int64]:
        """Token ids: int64 [prompts, chunks, 77]."""

    def count(self, text: str) -> int:
        """Tokens of a text, without those that begin and end it."""


class Batch(NamedTuple):
    """One micro-batch of m samples in a bucket of W×H pixels, f the VAE's factor."""

    pixels: Tensor
    """uint8 [m, 3, H, W], as a view of [m, H, W, 3]"""
    input_ids: Tensor
    """int64 [m, chunks, 77]"""
    size_and_crop: Tensor
    """int64 [m, 6], as `Sample` has it"""
    loss_weights: Tensor
    """float32 [m]"""
    timesteps: Tensor
    """int64 [m]"""
    noise: Tensor
    """float32 [m, C, H/f, W/f], like the two that follow"""
    perturbation: Tensor
    posterior_noise: Tensor
    bad: list[BadSample]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device; pinned memory is copied asynchronously."""
        tensors = self._asdict()
        bad = tensors.pop("bad")
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}, bad=bad)


@dataclass(frozen=True)
class LatentShape:
    """What noise has to look like."""

    channels: int
    factor: int
    """Pixels that one latent spans."""

    def of(self, width: int, height: int) -> tuple[int, int, int]:
        """[C, h, w] for a picture of this size in pixels."""
        return self.channels, height // self.factor, width // self.factor


class MicroBatches(Dataset[Batch | UserError]):
    """This rank's micro-batches from a step on; item i is number i % n of step first + i // n."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        preparer: Preparer,
        tokenizer: Tokenizer,
        latents: LatentShape,
        *,
        timesteps: int,
        seed: int,
        steps: range,
        rank: int,
        world: int,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._preparer = preparer
        self._tokenizer = tokenizer
        self._latents = latents
        self._timesteps = timesteps
        self._steps = steps
        self._rank = rank
        self._world = world
        self._noise_key = purpose_key(seed, "noise")
        self._timestep_key = purpose_key(seed, "timestep")
        self._excluded = lru_cache(maxsize=1)(journal.excluded)

    def __len__(self) -> int:
        return len(self._steps) * self._per_step

    @property
    def _per_step(self) -> int:
        return self._plan.micro_batches_per_step // self._world

    def __getitem__(self, item: int) -> Batch | UserError:
        step = self._steps[item // self._per_step]
        micro_batch = self._plan.step(step)[self._rank + item % self._per_step * self._world]
        try:
            return self.prepare(step, micro_batch)
        except UserError as error:
            # Raised in a worker it would come out wrapped in that worker's traceback.
            return error

    def prepare(self, step: int, micro_batch: MicroBatch) -> Batch:
        """Prepare one micro-batch of a step."""
        bad: list[BadSample] = []
        samples = self._preparer.prepare(step, micro_batch, self._excluded(step), bad)
        slots = micro_batch.first_slot + np.arange(self._plan.micro_batch)
        noise, perturbation, posterior_noise = self._draw_noise(micro_batch)
        return Batch(
            pixels=shared([torch.from_numpy(s.pixels) for s in samples]).permute(0, 3, 1, 2),
            input_ids=torch.from_numpy(self._tokenizer([s.prompt for s in samples])),
            size_and_crop=torch.tensor([s.size_and_crop for s in samples]),
            loss_weights=torch.tensor([s.loss_weight for s in samples]),
            timesteps=torch.from_numpy(
                (to_unit(hash_counters(self._timestep_key, step, slots)) * self._timesteps).astype(np.int64)
            ),
            noise=noise,
            perturbation=perturbation,
            posterior_noise=posterior_noise,
            bad=bad,
        )

    def _draw_noise(self, micro_batch: MicroBatch) -> list[Tensor]:
        """Noise, perturbation and posterior noise, each float32 [m, C, h, w]."""
        width, height = self._plan.sizes[micro_batch.bucket]
        shape = (3, *self._latents.of(int(width), int(height)))
        draws = [
            torch.from_numpy(CounterRng(self._noise_key, draw.epoch, draw.sample, draw.repeat).normal(shape))
            for draw in micro_batch.draws
        ]
        return [shared([noises[kind] for noises in draws]) for kind in range(3)]


def shared(parts: list[Tensor]) -> Tensor:
    """The parts stacked; in a worker process in memory that the trainer shares, so that they are copied once."""
    whole = torch.empty((len(parts), *parts[0].shape), dtype=parts[0].dtype)
    if get_worker_info() is not None:
        whole.share_memory_()  # type: ignore[no-untyped-call]
    return torch.stack(parts, out=whole)


def open_loader(dataset: MicroBatches, config: DataConfig, pin: bool) -> Iterator[Batch]:
    """Micro-batches in the plan's order, prepared ahead by worker processes, which start at once.

    Raises:
        UserError: the data has to be mended first; when the batch is taken that cannot be prepared.
    """
    loader: DataLoader[Batch | UserError] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=pin,
    )
    return map(_or_raise, iter(loader))


def _or_raise(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise RankError(str(batch))
    return batch
