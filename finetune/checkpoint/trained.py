"""The weights that a checkpoint holds, for exports: parameters from its fragments, what never trained from the model
that the run began with, one part at a time."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor, nn

from finetune.checkpoint.rows import MAPPED_BYTES, SavedRows
from finetune.distributed.fragments import RankState
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import load_one
from finetune.model.weights import converted

MAPPED_SHARE = 0.1
"""Of the exported model's bytes, how many of a checkpoint's files are in memory at a time."""


class Trained:
    """The weights of a run's model at a checkpoint, each read when it is asked for."""

    def __init__(
        self,
        config: ModelConfig,
        parts: Mapping[str, nn.Module],
        ranks: tuple[Callable[[int], RankState], int],
        *,
        average: bool | None,
        dtype: torch.dtype,
    ) -> None:
        """Look what the checkpoint holds.

        Args:
            config: of the model that the run began with.
            parts: its parts, which may be on the meta device.
            ranks: what reads a rank's state, and how many there are.
            average: take the averages of the weights, which must be there; None takes those that are.

        Raises:
            UserError: the checkpoint is of another model, or has no average.
        """
        self.parts = parts
        self.dtype = dtype
        self._config = config
        self._shapes = {
            f"{key}.{name}": tuple(tensor.shape)
            for key, part in parts.items()
            for name, tensor in part.state_dict().items()
        }
        exported = sum(map(prod, self._shapes.values())) * dtype.itemsize
        self._saved = SavedRows(*ranks, max(MAPPED_BYTES, int(MAPPED_SHARE * exported)))
        self._base: tuple[str, dict[str, Tensor]] = ("", {})
        self._check()
        if average and not self._saved.averaged:
            raise UserError("the run keeps no average of its weights: leave out --ema")
        self.average = average is not False and bool(self._saved.averaged)
        """Whether these are the averages."""

    def read(self, part: str, name: str) -> Tensor:
        """A tensor of a part's state_dict, on the CPU. Raises UserError where it cannot be had."""
        full = f"{part}.{name}"
        if full in self._saved.sizes:
            row = self._saved.row(full, average=self.average, dtype=self.dtype)
            return converted(row.view(self._shapes[full]), self.dtype, full)
        if self._base[0] != part:
            self._base = ("", {})  # before the next one is loaded
            self._base = (part, load_one(self._config, part, self.dtype).state_dict())
        return converted(self._base[1][name], self.dtype, full)

    @torch.no_grad()
    def load(self) -> None:
        """Copy what the checkpoint holds into the parts, which have to be those that the run began with. Raises
        UserError where something of it cannot be had."""
        for full in self._saved.sizes:
            part, _, name = full.partition(".")
            self.parts[part].get_parameter(name).copy_(self.read(part, name))

    def _check(self) -> None:
        for name, size in self._saved.sizes.items():
            shape = self._shapes.get(name)
            if shape is None or prod(shape) != size:
                has = "none" if shape is None else f"one of {prod(shape):,}"
                raise UserError(
                    f"the checkpoint holds {name} with {size:,} values and the model {self._config.path} has {has}: "
                    "put back the model that the run began with"
                )
