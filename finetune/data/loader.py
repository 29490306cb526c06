"""Micro-batches for one rank: the draws that the plan names, prepared, tokenized and with their noise.

A map-style dataset over micro-batches: workers hold no state, so nothing that was prefetched can be lost, and any
number of workers gives the same batches. Every choice for a draw comes from a counter-based stream of its own.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.batch import Batch, Chunks, LatentShape, Packed, packed
from finetune.data.buckets import I64
from finetune.data.config import DataConfig
from finetune.data.hashing import hash_counters, purpose_key, shuffled_order, to_unit
from finetune.data.journal import Journal
from finetune.data.latents import area_sums
from finetune.data.noises import NoiseSource
from finetune.data.plan import MicroBatch, Plan
from finetune.data.preparer import BadSample, Preparer, Sample
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.timesteps import Timesteps
from finetune.errors import RankError, UserError
from finetune.parent import serve, signals_held_back

B = TypeVar("B")


class Tokenizer(Protocol):
    """What turns prompts into a model's tokens."""

    max_tokens: int
    """The most tokens of a prompt."""

    def __call__(self, prompts: list[str], /) -> "Chunks":
        """Token ids."""

    def count(self, text: str) -> int:
        """Tokens of a text, without those that begin and end it."""


class MicroBatches(Dataset[Packed | UserError]):
    """This rank's micro-batches from a step on; item i is number i % n of step first + i // n."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        preparer: Preparer,
        tokenizer: Tokenizer,
        latents: LatentShape,
        *,
        diffusion: DiffusionConfig,
        seed: int,
        steps: range,
        rank: int,
        world: int,
    ) -> None:
        self._plan = plan
        self._preparer = preparer
        self._tokenizer = tokenizer
        self._latents = latents
        self._timesteps = Timesteps(diffusion)
        self._stratified = diffusion.sampling.stratified
        self._noises = NoiseSource(diffusion.noise, seed)
        self._steps = steps
        self._rank = rank
        self._world = world
        self._timestep_key = purpose_key(seed, "timestep")
        self._stratum_key = purpose_key(seed, "stratum")
        self._excluded = lru_cache(maxsize=1)(journal.excluded)

    def __len__(self) -> int:
        return len(self._steps) * self._per_step

    @property
    def _per_step(self) -> int:
        return self._plan.global_batch // self._plan.micro_batch(self._steps.start) // self._world

    def __getitem__(self, item: int) -> Packed | UserError:
        step = self._steps[item // self._per_step]
        micro_batch = self._plan.step(step)[self._rank + item % self._per_step * self._world]
        try:
            return self._packed(step, micro_batch)
        except UserError as error:
            # Raised in a worker it would come out wrapped in that worker's traceback.
            return error

    def prepare(self, step: int, micro_batch: MicroBatch, timesteps: I64 | None = None) -> Batch:
        """Prepare one micro-batch of a step.

        Args:
            timesteps: int64 [m], in place of those that the step would draw.
        """
        return self._packed(step, micro_batch, timesteps).unpacked()

    def _packed(self, step: int, micro_batch: MicroBatch, timesteps: I64 | None = None) -> Packed:
        bad: list[BadSample] = []
        samples = self._preparer.prepare(step, micro_batch, self._excluded(step), bad)
        width, height = self._plan.sizes[micro_batch.bucket].tolist()
        shape = self._latents.of(width, height)
        noises = [self._noises.draw(draw, shape) for draw in micro_batch.draws]
        return packed(
            {
                "pixels": [torch.from_numpy(s.pixels) for s in samples if s.pixels is not None],
                "moments": [s.latents.moments for s in samples if s.latents],
                **self._tokenizer([s.prompt for s in samples])._asdict(),
                "size_and_crop": torch.tensor([s.size_and_crop for s in samples]),
                "loss_weights": torch.tensor([s.loss_weight for s in samples]),
                "mask": latent_mask([_mask_sums(s, self._latents.factor) for s in samples], self._latents.factor),
                "timesteps": self._draw_timesteps(step, micro_batch)
                if timesteps is None
                else torch.from_numpy(timesteps),
                "noise": [noise.noise for noise in noises],
                "offset": [noise.offset for noise in noises],
                "perturbation": [noise.perturbation for noise in noises],
                "posterior_noise": [noise.posterior for noise in noises],
            },
            {"size": (width, height), "bad": bad, "facts": [s.facts for s in samples]},
        )

    def _draw_timesteps(self, step: int, micro_batch: MicroBatch) -> Tensor:
        """The timesteps of a micro-batch's slots in a step: int64 [m]."""
        slots = micro_batch.first_slot + np.arange(len(micro_batch.samples))
        quantiles = to_unit(hash_counters(self._timestep_key, step, slots))
        if self._stratified:
            # Slots are in the order of their buckets' areas, which must not decide on the timestep.
            count = self._plan.global_batch
            strata = shuffled_order(hash_counters(self._stratum_key, step, np.arange(count)))
            quantiles = (strata[slots] + quantiles) / count
        return self._timesteps(torch.from_numpy(quantiles))


def _mask_sums(sample: Sample, factor: int) -> npt.NDArray[np.uint16] | None:
    if sample.latents:
        return sample.latents.mask
    return None if sample.mask is None else area_sums(sample.mask, factor)


def latent_mask(sums: Sequence[npt.NDArray[np.uint16] | None], factor: int) -> Tensor:
    """How much each latent counts: the mean over the pixels that it spans, 1 where a sample has no mask.

    Args:
        sums: over those pixels, of which 255 counts fully: uint16 [h, w].
        factor: pixels that a latent spans on each side.

    Returns:
        float32 [m, 1, h, w]; ones [m, 1, 1, 1] where no sample has a mask.
    """
    given = [each for each in sums if each is not None]
    if not given:
        return torch.ones(len(sums), 1, 1, 1)
    whole = np.ones(given[0].shape)
    means = [whole if each is None else each / factor**2 / 255.0 for each in sums]
    return torch.from_numpy(np.stack(means)[:, None].astype(np.float32))


def open_loader(
    dataset: Dataset[B | UserError], config: DataConfig, pin: bool, order: Iterable[Any] | None = None
) -> Iterator[B]:
    """What a data set holds, micro-batches in the plan's order for one, prepared ahead by worker processes, which start
    at once.

    The workers end with this process and when the iterator goes, and are deaf to signals that ask a run to stop.

    Args:
        order: what the data set is asked for, in this process; None asks for all items from the first on.

    Raises:
        UserError: the data has to be mended first; when the batch is taken that cannot be prepared.
    """
    loader: DataLoader[B | UserError] = DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=pin,
        worker_init_fn=partial(serve, os.getpid()),
        multiprocessing_context="fork" if config.workers else None,
    )
    with signals_held_back():
        return map(_or_raise, iter(loader))


def _or_raise(item: B | UserError) -> B:
    if isinstance(item, UserError):
        raise RankError(str(item))
    return item
