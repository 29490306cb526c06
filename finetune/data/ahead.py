"""Fetching the remote shards of the next windows into the cache while the ones before are trained."""

import os
import threading
from contextlib import suppress
from itertools import islice
from types import TracebackType

from finetune.data.plan import Plan
from finetune.data.sources import Sources
from finetune.errors import UserError

GIB = 2**30


class Ahead:
    """Threads that fetch, one set per machine. A context: it ends when it is left."""

    def __init__(self, plan: Plan, sources: Sources, *, windows: int, downloads: int, step: int) -> None:
        """Prepare to fetch.

        Args:
            windows: how many windows to be ahead of the one being trained; -1 fetches nothing at all.
            downloads: shards that are fetched at the same time.
            step: the step that is trained first.
        """
        self._plan = plan
        self._sources = sources
        self._windows = windows
        self._step = step
        self._begun: set[tuple[int, int, int]] = set()
        self._choosing = threading.Lock()
        self._moved = threading.Event()
        self._ended = False
        # A request that hangs is not waited for, neither here nor when the process ends.
        self._threads = [threading.Thread(target=self._run, name="fetch", daemon=True) for _ in range(downloads)]

    def __enter__(self) -> "Ahead":
        if self._windows >= 0 and any_remote(self._sources):
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._moved.set()
        self._sources.give_up()

    def reached(self, step: int) -> None:
        """Say which step is being trained."""
        self._step = step
        self._moved.set()

    def _run(self) -> None:
        while shard := self._next():
            # A fault that ends a fetch comes up again, and is raised, where the shard is read.
            with suppress(OSError, UserError):
                self._sources.fetch(*shard)

    def _next(self) -> tuple[int, int, int] | None:
        """The first shard that is wanted and that no thread has begun with, once there is one; None at the end."""
        with self._choosing:
            while True:
                self._moved.clear()
                if self._ended:
                    return None
                wanted = self._wanted()
                self._begun &= wanted.keys()
                for shard in wanted:
                    if shard not in self._begun:
                        self._begun.add(shard)
                        return shard
                self._moved.wait()

    def _wanted(self) -> dict[tuple[int, int, int], None]:
        """The (source, shard, epoch) of what is remote and read in the window being trained and the next ones, in the
        order in which it is needed."""
        found: dict[tuple[int, int, int], None] = {}
        for epoch, window in islice(self._plan.windows(self._step), 1 + self._windows):
            found |= {(*shard, epoch): None for shard in sorted(self._plan.shards_in(epoch, window))}
        return {shard: None for shard in found if self._sources.is_remote(*shard)}


def any_remote(sources: Sources) -> bool:
    """Whether any shard of any source has to be fetched."""
    return any(
        sources.is_remote(number, shard, epoch)
        for number, source in enumerate(sources.all)
        for epoch in source.latents or (0,)
        for shard in range(len(source.index.shards))
    )


def cache_needed(plan: Plan, sources: Sources, windows_ahead: int) -> int:
    """Bytes of the remote shards that are wanted at the same time, at most: in the first epoch, and in those from which
    on latents of other buckets are read."""
    epochs = {0}.union(*(source.latents for source in sources.all))
    return max(_needed_in(epoch, plan, sources, windows_ahead) for epoch in epochs)


def _needed_in(epoch: int, plan: Plan, sources: Sources, windows_ahead: int) -> int:
    per_window = [
        {
            (source, shard): sources.all[source].stored(epoch).shards[shard].size
            for source, shard in plan.shards_in(epoch, window)
            if sources.is_remote(source, shard, epoch)
        }
        for window in range(plan.window_count(epoch))
    ]
    together = 0
    for first in range(len(per_window)):
        joined: dict[tuple[int, int], int] = {}
        for shards in per_window[first : first + 1 + windows_ahead]:
            joined |= shards
        together = max(together, sum(joined.values()))
    return together


def check_cache(plan: Plan, sources: Sources, windows_ahead: int, size_gib: float) -> None:
    """Raise UserError where the cache cannot hold what is wanted at the same time."""
    needed = cache_needed(plan, sources, windows_ahead) if any_remote(sources) else 0
    if needed > size_gib * GIB:
        raise UserError(
            f"data.cache.size_gib is {size_gib:g}, and {needed / GIB:.2f} GiB of remote shards are wanted at the same "
            "time: raise it, or lower data.window_shards or data.cache.windows_ahead"
        )


def is_first_on_machine() -> bool:
    """Whether this process is the one of its machine that fetches ahead."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
