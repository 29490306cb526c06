"""Fetching the remote shards of the next windows into the cache while the ones before are trained."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType

from finetune.data.plan import Plan
from finetune.data.sources import Sources
from finetune.errors import UserError

GIB = 2**30


class Ahead:
    """Threads that fetch, one set per machine. A context: it ends when it is left."""

    def __init__(self, plan: Plan, sources: Sources, *, windows: int, downloads: int, step: int) -> None:
        """Start fetching.

        Args:
            windows: how many windows to be ahead of the one being trained.
            downloads: shards that are fetched at the same time.
            step: the step that is trained first.
        """
        self._plan = plan
        self._sources = sources
        self._windows = windows
        self._step = step
        self._moved = threading.Event()
        self._ended = False
        self._pool = ThreadPoolExecutor(downloads, thread_name_prefix="fetch")
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> "Ahead":
        if any_remote(self._sources):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if kind is not None:
            self._sources.give_up()
        self._moved.set()
        self._pool.shutdown(cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join()

    def reached(self, step: int) -> None:
        """Say which step is being trained."""
        self._step = step
        self._moved.set()

    def _run(self) -> None:
        begun: dict[tuple[int, int], Future[Path]] = {}
        while not self._ended:
            self._moved.clear()
            wanted: dict[tuple[int, int], None] = {}
            for epoch, window in islice(self._plan.windows(self._step), 1 + self._windows):
                wanted |= dict.fromkeys(sorted(self._plan.shards_in(epoch, window)))
            # A fault that ends a fetch comes up again, and is raised, where the shard is read.
            begun = {shard: future for shard, future in begun.items() if shard in wanted}
            for source, shard in wanted:
                if (source, shard) not in begun and self._sources.is_remote(source, shard) and not self._ended:
                    begun[source, shard] = self._pool.submit(self._sources.fetch, source, shard)
            self._moved.wait()


def any_remote(sources: Sources) -> bool:
    """Whether any source's shards have to be fetched."""
    return any(sources.is_remote(number, 0) for number in range(len(sources.all)))


def cache_needed(plan: Plan, sources: Sources, windows_ahead: int, epoch: int = 0) -> int:
    """Bytes of the remote shards that are wanted at the same time, at most, in an epoch."""
    per_window = [
        {shard: size(sources, *shard) for shard in plan.shards_in(epoch, window) if sources.is_remote(*shard)}
        for window in range(plan.window_count(epoch))
    ]
    together = 0
    for first in range(len(per_window)):
        joined: dict[tuple[int, int], int] = {}
        for shards in per_window[first : first + 1 + windows_ahead]:
            joined |= shards
        together = max(together, sum(joined.values()))
    return together


def size(sources: Sources, source: int, shard: int) -> int:
    """Bytes of a shard."""
    return sources.all[source].index.shards[shard].size


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
