"""One micro-batch as it goes from the loader to the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from finetune.data.preparer import BadSample, Facts

ALIGNED = 64
"""Bytes at whose multiples the tensors of a packed batch begin."""


class Chunks(NamedTuple):
    """Prompts as the chunks that text encoders read. Those that only fill up shorter prompts are one, which is encoded
    but once."""

    input_ids: Tensor
    """int64 [R, encoders, 77]"""
    chunk_rows: Tensor
    """The row in which each chunk of a prompt stands: int64 [prompts, chunks]"""

    def to(self, device: torch.device) -> "Chunks":
        """The same on the device."""
        return Chunks(self.input_ids.to(device), self.chunk_rows.to(device))


class Batch(NamedTuple):
    """One micro-batch of m samples in a bucket of W×H pixels, f the VAE's factor. There are pixels or moments."""

    size: tuple[int, int]
    """(W, H)"""
    pixels: Tensor | None
    """uint8 [m, 3, H, W], as a view of [m, H, W, 3]"""
    moments: Tensor | None
    """fp16 or bf16 [m, 2C, H/f, W/f], as `Latents` has them"""
    input_ids: Tensor
    """int64 [R, encoders, 77], as `Chunks` has it, like the next"""
    chunk_rows: Tensor
    """int64 [m, chunks]"""
    size_and_crop: Tensor
    """int64 [m, 6], as `Sample` has it"""
    loss_weights: Tensor
    """float32 [m]"""
    mask: Tensor
    """How much each latent counts: float32 [m, 1, H/f, W/f], or ones [m, 1, 1, 1] where all do"""
    timesteps: Tensor
    """int64 [m]"""
    noise: Tensor
    """float32 [m, C, H/f, W/f], like the posterior's"""
    offset: Tensor
    """float32 [m, C, 1, 1], before its strength"""
    perturbation: Tensor
    """float32, as the noise, before its strength; or zeros [m, 1, 1, 1] where there is none"""
    posterior_noise: Tensor
    bad: list[BadSample]
    facts: list[Facts]
    """Of every sample."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device; pinned memory is copied asynchronously."""
        tensors = {name: part for name, part in self._asdict().items() if isinstance(part, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return self._replace(**moved)


class _Place(NamedTuple):
    """Of a tensor within another's bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    """Byte."""

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.first + prod(self.shape) * self.dtype.itemsize

    def of(self, whole: Tensor) -> Tensor:
        """The tensor."""
        return whole[self.first : self.end].view(self.dtype).view(self.shape)


class Packed(NamedTuple):
    """A micro-batch whose tensors lie in one: handing a tensor over from one process to another takes half a
    millisecond of both, however small it is."""

    whole: Tensor
    """uint8 [bytes]"""
    places: dict[str, _Place]
    """Of the batch's tensors, by their names; pixels as [m, H, W, 3]."""
    rest: dict[str, Any]
    """All else of the batch."""

    def unpacked(self) -> Batch:
        """The micro-batch."""
        tensors: dict[str, Any] = {"pixels": None, "moments": None}
        tensors |= {name: place.of(self.whole) for name, place in self.places.items()}
        if tensors["pixels"] is not None:
            tensors["pixels"] = tensors["pixels"].permute(0, 3, 1, 2)
        return Batch(**tensors, **self.rest)


def packed(tensors: Mapping[str, Tensor | list[Tensor]], rest: dict[str, Any]) -> Packed:
    """A micro-batch of tensors, of lists of those that are to be stacked, which may be empty, and of other things. In a
    worker process it lies in memory that the trainer shares, so that it is copied once."""
    given = {name: one for name, one in tensors.items() if len(one)}
    places, end = dict[str, _Place](), 0
    for name, one in given.items():
        dtype, shape = (one[0].dtype, (len(one), *one[0].shape))
        places[name] = _Place(dtype, shape, -(-end // ALIGNED) * ALIGNED)
        end = places[name].end
    whole = blank((end,), torch.uint8)
    for name, one in given.items():
        there = places[name].of(whole)
        if isinstance(one, Tensor):
            there.copy_(one)
        else:
            torch.stack(one, out=there)
    return Packed(whole, places, rest)


@dataclass(frozen=True)
class LatentShape:
    """What noise has to look like."""

    channels: int
    factor: int
    """Pixels that one latent spans."""

    def of(self, width: int, height: int) -> tuple[int, int, int]:
        """[C, h, w] for a picture of this size in pixels."""
        return self.channels, height // self.factor, width // self.factor


def shared(parts: list[Tensor]) -> Tensor:
    """The parts stacked; in a worker process in memory that the trainer shares, so that they are copied once."""
    return torch.stack(parts, out=blank((len(parts), *parts[0].shape), parts[0].dtype))


def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor; in a worker process it is shared with the trainer."""
    memory = torch.empty(shape, dtype=dtype)
    return memory.share_memory_() if get_worker_info() else memory  # type: ignore[no-untyped-call]
