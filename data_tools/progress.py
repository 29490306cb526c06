"""Work spread over processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def in_parallel(
    function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, description: str
) -> Iterator[T]:
    """The results of `function(*job)`, as they come, from `workers` processes (in this one where that is 1)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=len(jobs))
        for result in _results(function, jobs, workers):
            progress.advance(task)
            yield result


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
