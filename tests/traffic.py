"""What a rank hands to torch's collectives, whoever calls them: DeepSpeed, torch's own DDP or Distributed."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HALVES = ("allgather_", "_allgather_base_", "reduce_", "_reduce_scatter_base_", "broadcast_")
RING_SHARE = {"allreduce_": 2.0, **dict.fromkeys(HALVES, 1.0)}
"""Of (world - 1) / world times a collective's bytes, how many of them each rank sends round a ring (Patarasuk and Yuan,
J. Parallel Distrib. Comput. 69, 2009); with one rank at an end it is the mean over all."""


class Sent(NamedTuple):
    """A collective."""

    name: str
    """As torch's dispatcher calls it: `allreduce_`, `reduce_`, `_allgather_base_`, …"""
    size: int
    """Bytes of the whole tensor, as it is before a scatter and after a gather."""

    def per_rank(self, world: int) -> float:
        """Bytes that each of `world` ranks sends."""
        return RING_SHARE[self.name] * (world - 1) / world * self.size


class Traffic(TorchDispatchMode):
    """Within it, the collectives over tensors are noted, on the CPU where they start in the thread that calls."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d" and func._opname != "barrier":
            self.sent.append(Sent(func._opname, max(map(_bytes, args))))
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list) else 0
