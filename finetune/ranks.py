"""What has to be known of the processes of a run to decide something once for all of them."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from finetune.errors import UserError

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run, as one of them sees them."""

    rank: int
    world: int
    is_main: bool

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""


def decided(ranks: Ranks, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on all ranks, which have to call this together.

    Raises:
        UserError: rank 0's, on all of them.
    """
    verdict: T | UserError | None = None
    if ranks.is_main:
        try:
            verdict = decide()
        except UserError as error:
            verdict = error
    verdict = ranks.gather(verdict)[0]
    if isinstance(verdict, UserError):
        raise verdict
    return verdict
