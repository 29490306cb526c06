"""One process, without DeepSpeed: the optimizer steps the parameters themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.distributed.fragments import Flat, Ranks, dealt, whole


class Single:
    """A model and its optimizer in one process."""

    divided = False
    """Whether each rank holds a share of the gradients and of the optimizer's state, rather than all."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Mapping[nn.Parameter, str],
        *,
        ranks: Ranks,
        accumulation: int,
    ) -> None:
        self.model: Any = module
        self.optimizer = optimizer
        groups = enumerate(optimizer.param_groups)
        self.flats: list[Flat] = dealt([whole(names[p], p, i) for i, group in groups for p in group["params"]], ranks)
        self._ranks = ranks
        self._accumulation = accumulation

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; after the step's last one those of the mean lie at the flat tensors."""
        (loss / self._accumulation).backward()  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Drop all gradients, also in the midst of a step."""
        self.optimizer.zero_grad()

    def resting(self, parameters: Mapping[str, nn.Parameter]) -> list[Flat]:
        """Parameters that the optimizer does not step, as flat tensors."""
        return dealt([whole(name, parameter) for name, parameter in parameters.items()], self._ranks)

    def publish(self) -> None:
        """Nothing to do: the flat tensors are the parameters."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Nothing to do: the model has all of its weights."""
        yield

    def close(self) -> None:
        """Let go of gradients and of the optimizer's state, whoever still holds the optimizer."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
