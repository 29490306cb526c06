"""Ranks that hold up the others."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

LEAST_S = 0.05
"""A rank that is slower by less a step is not worth a word, whatever the ratio."""


class Slow(NamedTuple):
    """A rank that is slower than the others."""

    rank: int
    seconds: float
    """Its median step."""
    others: float
    """The median of the other ranks' median steps, in seconds."""


def slow(seconds: Sequence[Sequence[float]], factor: float) -> list[Slow]:
    """The ranks whose median step takes more than `factor` times as long as that of the others.

    Args:
        seconds: of every rank, what each of the last steps took without the time in which it waited for the others;
            as many steps for each.
        factor: 0 finds none.
    """
    if not factor or len(seconds) < 2 or not all(seconds):
        return []
    medians = [median(of_rank) for of_rank in seconds]
    found = []
    for rank, own in enumerate(medians):
        others = median(medians[:rank] + medians[rank + 1 :])
        if own > factor * others and own > others + LEAST_S:
            found.append(Slow(rank, own, others))
    return found
