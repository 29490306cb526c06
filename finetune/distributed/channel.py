"""Collectives apart from the training's, for threads that run beside it."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(hours=24)
"""What the ranks wait for here is disks and networks; a rank that dies is noticed at once all the same."""


class SideChannel:
    """All ranks, in a process group of its own over the CPU. Every rank makes one, then calls the same methods in the
    same order, in whichever thread."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.is_main = rank == 0
        self._world = world
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in the order of ranks, on every rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._world
        dist.all_gather_object(values, value, group=self._group)
        return values
