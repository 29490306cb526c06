"""Several ranks in one test: as threads, or as processes that are forked and so need not import anything."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import torch.distributed as dist

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.store import Checkpoint, CheckpointStore, Marks

T = TypeVar("T")


class OneRank:
    """A world of one."""

    rank, world = 0, 1
    is_main = True

    def gather(self, value: Any) -> list[Any]:
        return [value]


class ThreadRank:
    """A rank in a thread of its own; made by `ranks`."""

    def __init__(self, rank: int, meeting: Barrier, values: list[Any]) -> None:
        self.rank, self.world, self.is_main = rank, len(values), rank == 0
        self._meeting, self._values = meeting, values

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._meeting.wait(timeout=30.0)
        gathered = list(self._values)
        self._meeting.wait(timeout=30.0)  # or a fast rank's next value would come too early
        return gathered


def ranks(world: int) -> list[ThreadRank]:
    """A world of threads."""
    meeting, values = Barrier(world), [None] * world
    return [ThreadRank(rank, meeting, values) for rank in range(world)]


def on_threads(world: int, act: Callable[[ThreadRank], T]) -> list[T]:
    """What `act` returns on every rank, each in a thread; raises what the first of them raises."""
    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(act, ranks(world)))


def save_checkpoint(
    folder: Path,
    states: Sequence[dict[str, Any]],
    step: int,
    meta: dict[str, Any] | None = None,
    marks: Marks | None = None,
    config: CheckpointConfig | None = None,
) -> Checkpoint:
    """A checkpoint of as many ranks as there are states."""

    def save(rank: ThreadRank) -> Checkpoint | None:
        store = CheckpointStore(folder, config or CheckpointConfig(), rank)
        store.save(step, states[rank.rank], meta or {}, marks)
        return store.wait()

    checkpoint = on_threads(len(states), save)[0]
    assert checkpoint is not None
    return checkpoint


def forked(world: int, act: Callable[[int], None], rendezvous: Path | None = None) -> list[int]:
    """Run `act(rank)` in a child process for each rank; how each of them ends: its exit code, or minus its signal.

    Args:
        rendezvous: a file that is not there yet, by which the ranks form a gloo process group first.
    """
    children = [_fork(rank, world, act, rendezvous) for rank in range(world)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(rank: int, world: int, act: Callable[[int], None], rendezvous: Path | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if rendezvous:
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
        act(rank)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
