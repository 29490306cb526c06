"""What the store needs to know of the processes, and how it acts on all of them at once."""

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from finetune.errors import UserError

T = TypeVar("T")


class Ranks(Protocol):
    """What the store needs to know of the processes."""

    rank: int
    is_main: bool

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""


def on_all(ranks: Ranks, act: Callable[[], T]) -> list[T]:
    """Act on every rank, each of which calls this; what came of it on each. Nobody is left waiting where one fails.

    Raises:
        UserError: it was raised on another rank.
        OSError: something else was raised on another rank.
    """
    given: T | None = None
    try:
        given = act()
    finally:
        error = sys.exception()
        told = None if error is None else (isinstance(error, UserError), str(error) or type(error).__name__)
        outcomes = ranks.gather((given, told))
    for rank, (_, told) in enumerate(outcomes):
        if told:
            by_user, sentence = told
            raise UserError(sentence) if by_user else OSError(f"rank {rank}: {sentence}")
    return [given for given, _ in outcomes]


def on_main(ranks: Ranks, act: Callable[[], T]) -> T:
    """Act on rank 0, while the others wait; what came of it, on every rank. Raises like `on_all`."""
    return on_all(ranks, act if ranks.is_main else lambda: None)[0]  # type: ignore[return-value]
