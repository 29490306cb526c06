"""The moving average of all weights that train in a run, kept wherever the optimizer keeps its state."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from finetune.distributed.fragments import Flat
from finetune.optim.config import EmaConfig

AT_A_TIME = 1 << 24
"""Elements that are compared at once, so that no second copy of the weights is needed."""


class Ema:
    """The exponential moving average of flat tensors, in fp32.

    In main memory beside a GPU, an update costs the GPU one copy of its share over the bus, queued behind the step
    without waiting for it; a thread adds it up during the next steps. Main memory holds the share twice.
    """

    def __init__(self, config: EmaConfig, flats: Sequence[Flat]) -> None:
        self._config = config
        self._flats = flats
        self.steps = 0
        """Optimizer steps so far."""
        in_main_memory = config.device == "cpu" and any(flat.tensor.is_cuda for flat in flats)
        self._averages = [self._room(flat, pinned=False) for flat in flats]
        self._staged = [self._room(flat, pinned=True) for flat in flats] if in_main_memory else []
        self._thread = ThreadPoolExecutor(1) if in_main_memory else None
        self._adding: Future[None] | None = None
        self.restart()

    @property
    def values(self) -> list[Tensor]:
        """The average of each flat tensor, a row."""
        if self._adding:
            self._adding.result()
            self._adding = None
        return self._averages

    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        self.steps = 0
        for i in range(len(self._flats)):
            self.set(i, None)

    def set(self, index: int, average: Tensor | None) -> None:
        """Give a flat tensor the average that was saved, or where there is none its weights."""
        self.values[index].copy_(self._flats[index].values if average is None else average)

    def update(self) -> None:
        """Count a step, and take the weights in where it is due."""
        share = 1.0 - self._decay(self.steps) ** self._config.every_steps
        self.steps += 1
        if self.steps % self._config.every_steps:
            return
        averages, weights = self.values, [flat.values for flat in self._flats]
        if self._thread is None:
            torch._foreach_lerp_(averages, weights, share)
            return
        torch._foreach_copy_(self._staged, weights, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._adding = self._thread.submit(self._add_staged, copied, share)

    def squares(self) -> Tensor:
        """The squares of two norms over what this rank saves, weights − average and weights: float64 [2] where the
        weights lie."""
        parts = [
            torch.stack((_square(weights - average.to(weights.device)), _square(weights)))
            for flat, row in zip(self._flats, self.values, strict=True)
            if flat.saved
            for weights, average in zip(torch.split(flat.values, AT_A_TIME), torch.split(row, AT_A_TIME), strict=True)
        ]
        nothing = torch.zeros(2, dtype=torch.float64)
        return torch.stack(parts).sum(0) if parts else nothing

    def close(self) -> None:
        """End the thread."""
        if self._thread:
            self._thread.shutdown()

    def _add_staged(self, copied: torch.cuda.Event, share: float) -> None:
        copied.synchronize()
        torch._foreach_lerp_(self._averages, self._staged, share)

    def _decay(self, steps: int) -> float:
        """The decay of a step after `steps` others: with warm-up min(decay, (1 + n) / (10 + n))."""
        warm = (1 + steps) / (10 + steps) if self._config.warmup else 1.0
        return min(self._config.decay, warm)

    def _room(self, flat: Flat, *, pinned: bool) -> Tensor:
        device = "cpu" if self._config.device == "cpu" else flat.tensor.device
        return torch.empty(flat.tensor.numel(), dtype=torch.float32, device=device, pin_memory=pinned)


def _square(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values)
    return norm.double().square()
