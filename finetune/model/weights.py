"""A model's weights, one tensor at a time: what writes files asks for them by name and never holds all of them."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune.errors import UserError


class Weights(Protocol):
    """The parts of a model in one type of numbers."""

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts by their names in diffusers' layout, for their configurations, names and shapes; they may be on the
        meta device."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of all tensors."""

    def read(self, part: str, name: str) -> Tensor:
        """A tensor of a part's state_dict, on the CPU. Raises UserError where it cannot be had."""


class InMemory:
    """The weights of parts that are in memory, on whatever device."""

    def __init__(self, parts: Mapping[str, nn.Module], dtype: torch.dtype = torch.float32) -> None:
        self.parts = parts
        self.dtype = dtype
        self._states = {key: part.state_dict() for key, part in parts.items()}

    def read(self, part: str, name: str) -> Tensor:
        """A tensor of a part's state_dict, on the CPU. Raises UserError where `dtype` cannot hold it."""
        return converted(self._states[part][name].cpu(), self.dtype, f"{part}.{name}")


def converted(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A tensor in another type, rounded to the nearest.

    Raises:
        UserError: it has values that fp16 has no room for, or that are not finite already.
    """
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(cast).all():
        raise UserError(f"{name} has values that fp16 cannot hold: export with --dtype bf16 or fp32")
    return cast
