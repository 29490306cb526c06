"""One process, without DeepSpeed: the optimizer steps the parameters themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finetune.distributed.fragments import Flat, whole
from finetune.distributed.scaling import LossScale


class Single:
    """A model and its optimizer in one process."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Mapping[nn.Parameter, str],
        *,
        accumulation: int,
        max_grad_norm: float,
        scale: LossScale | None,
    ) -> None:
        self.model = module
        self.optimizer = optimizer
        self.flats: list[Flat] = [
            whole(names[p], p, i) for i, group in enumerate(optimizer.param_groups) for p in group["params"]
        ]
        self._accumulation = accumulation
        self._max_grad_norm = max_grad_norm
        self._scale = scale

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients."""
        factor = self._scale.factor if self._scale else 1.0
        (loss / self._accumulation * factor).backward()  # type: ignore[no-untyped-call]

    def step(self) -> Tensor:
        """Clip and update, unless fp16 has overflowed; the global gradient norm before clipping."""
        parameters = [flat.tensor for flat in self.flats]
        if self._scale:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1.0 / self._scale.factor)
        norm = nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        finite = self._scale is None or bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        if self._scale:
            self._scale.update(finite=finite)
        self.optimizer.zero_grad()
        return norm

    def publish(self) -> None:
        """Nothing to do: the flat tensors are the parameters."""

    def forget(self) -> None:
        """Nothing to do: nobody but the optimizer holds its state."""

    def close(self) -> None:
        """Let go of gradients and of the optimizer's state, whoever still holds the optimizer."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
