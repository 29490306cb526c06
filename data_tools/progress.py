"""Work spread over processes, with a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def in_parallel(
    function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, description: str
) -> Iterator[T]:
    """The results of `function(*job)`, as they come, from `workers` processes (in this one where that is 1)."""
    with progress(description, len(jobs)) as tell:
        for done, result in enumerate(_results(function, jobs, workers), 1):
            tell(done)
            yield result


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Within it a progress bar is shown; gives what is to be told how much is done. Of several processes that a
    launcher has started, the first of a machine shows one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = os.environ.get("LOCAL_RANK", "0") != "0"
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def _results(function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield function(*job)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
