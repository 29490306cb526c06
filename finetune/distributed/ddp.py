"""Every rank holds all: only gradients are shared, once a step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune.distributed.fragments import Ranks
from finetune.distributed.single import Single


class Ddp(Single):
    """A model and its optimizer in each of several processes, which take the same steps."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Mapping[nn.Parameter, str],
        *,
        ranks: Ranks,
        accumulation: int,
    ) -> None:
        super().__init__(module, optimizer, names, ranks=ranks, accumulation=accumulation)
        self.model: Any = DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self._fix_buckets()
        self._expect(0)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; those of the last one of `accumulation` are reduced with what was added up."""
        super().backward(loss, last=last)
        self._expect(0 if last else self._done + 1)

    def clear(self) -> None:
        """Drop all gradients, also in the midst of a step. They stay parts of torch's buckets: others would be made for
        what is added up, beside the buckets."""
        torch._foreach_zero_([flat.tensor.grad for flat in self.flats if flat.tensor.grad is not None])
        self._expect(0)

    def close(self) -> None:
        """Let go of gradients, optimizer state and torch's hooks, whoever still holds the wrapped model."""
        super().close()
        self.leave()

    def leave(self) -> None:
        """Let go of the process group: one that is destroyed only as Python ends may wait for its own threads for
        ever."""
        del self.model.reducer, self.model.logger

    def _expect(self, done: int) -> None:
        """Before a forward pass: whether its gradients will be reduced, as torch wants to know by then."""
        self._done = done
        self.model.require_backward_grad_sync = done == self._accumulation - 1

    def _fix_buckets(self) -> None:
        """Divide the gradients into buckets for good. Torch does so anew after the first backward pass, by the order in
        which gradients came; then the first step of a run that goes on would sum in another order than the same step
        of a run that was never killed. A second pass makes the gradients, of zeros, parts of these buckets."""
        for _ in range(2):
            self.model.reducer.prepare_for_backward([])
            total = torch.zeros((), device=self.flats[0].tensor.device)
            for flat in self.flats:  # the last one's gradient comes first, as in training
                total = total + 0.0 * flat.tensor.sum()
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=bool(self.model.reducer._rebuild_buckets()))
