"""One process, without DeepSpeed: the optimizer steps the parameters themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finetune.distributed.fragments import Flat, whole


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
        accumulation: int,
    ) -> None:
        self.model = module
        self.optimizer = optimizer
        self.flats: list[Flat] = [
            whole(names[p], p, i) for i, group in enumerate(optimizer.param_groups) for p in group["params"]
        ]
        self._accumulation = accumulation

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; after the step's last one those of the mean lie at the flat tensors."""
        (loss / self._accumulation).backward()  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Drop all gradients, also in the midst of a step."""
        self.optimizer.zero_grad()

    def publish(self) -> None:
        """Nothing to do: the flat tensors are the parameters."""

    def close(self) -> None:
        """Let go of gradients and of the optimizer's state, whoever still holds the optimizer."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
