"""Activation checkpointing that fills the memory a GPU has: every block that is not computed again saves time."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch

from finetune.memory.activations import Block
from finetune.ranks import Ranks

T = TypeVar("T")
RESERVE = 0.06
"""Share of a GPU's memory that is left alone, for fragments between tensors of forty buckets' sizes and for what cuDNN
and NCCL take beside torch."""


@dataclass(frozen=True)
class Filling:
    """Which blocks are checkpointed, and what that comes to."""

    checkpointed: list[str]
    kept_bytes: int
    """What the other blocks keep for the backward pass."""
    saved_share: float
    """Of the work of computing all blocks again, what the others leave out."""

    def __str__(self) -> str:
        return (
            f"{len(self.checkpointed)} blocks are computed again in the backward pass; the others keep "
            f"{self.kept_bytes / 2**30:.1f} GiB and save {self.saved_share:.0%} of that work"
        )


def fill(
    ranks: Ranks,
    device: torch.device,
    blocks: Sequence[Block],
    *,
    checkpoint: Callable[[Collection[str]], None],
    fits: Callable[[], bool],
) -> Filling:
    """Checkpoint as few blocks as the memory of the rank that has least allows. All ranks call it.

    With every block checkpointed, a step shows how much is left. What blocks keep counts as if all of it were there
    when the step takes most, which is a little too much; where it does not fit all the same, half as much is kept.

    Args:
        blocks: what each one costs and saves.
        checkpoint: has blocks of these names checkpointed, and no others.
        fits: whether a step does as it now is, on all ranks; takes it.
    """
    everything = [block.name for block in blocks]
    checkpoint(everything)
    room = min(ranks.gather(memory_left(device))) if fits() else 0
    while kept := most_saved(blocks, room):
        checkpointed = [block.name for block in blocks if block not in kept]
        checkpoint(checkpointed)
        if fits():
            return _filling(blocks, checkpointed)
        room //= 2
    checkpoint(everything)
    return _filling(blocks, everything)


def most_saved(blocks: Sequence[Block], room: int) -> set[Block]:
    """Those of the blocks that need not be checkpointed where so many bytes are left: first those that compute most for
    what they keep."""
    kept: set[Block] = set()
    for block in sorted(blocks, key=lambda block: block.flops / max(block.bytes, 1), reverse=True):
        if 0 < block.bytes <= room:
            kept.add(block)
            room -= block.bytes
    return kept


class OutOfMemory(Exception):
    """Some rank's GPU has too little memory."""


def within_memory(ranks: Ranks, work: Callable[[], T]) -> T:
    """What some work gives that all ranks do. Raises OutOfMemory on all of them where it does not fit into the memory
    of one, so that none goes on to wait for it; unless they wait for one another in the midst of the work."""
    found: list[T] = []
    with suppress(torch.cuda.OutOfMemoryError):
        found.append(work())
    if not all(ranks.gather(bool(found))):
        raise OutOfMemory
    return found[0]


def memory_left(device: torch.device) -> int:
    """Bytes of a GPU that nobody has taken, but for the reserve."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free - int(RESERVE * total))


def _filling(blocks: Sequence[Block], checkpointed: list[str]) -> Filling:
    kept = [block for block in blocks if block.name not in checkpointed]
    work = sum(block.flops for block in blocks)
    return Filling(checkpointed, sum(b.bytes for b in kept), sum(b.flops for b in kept) / work)
