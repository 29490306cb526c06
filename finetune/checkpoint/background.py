"""Work beside the training."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(name: str, job: Callable[[], T]) -> Future[T]:
    """Begin a job in a thread that no dying process waits for; what it returns or raises comes by the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 (handed on whole to whoever asks for the result)
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
