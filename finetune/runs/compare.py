"""How far the parameters of two checkpoints are apart, one parameter at a time."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.checkpoint.rows import SavedRows


@dataclass
class Distance:
    """Sums over some elements of two rows, from which their distance follows."""

    elements: int = 0
    identical: bool = True
    """Whether they are the same bit for bit."""
    squares: float = 0.0
    """Of the first row's values."""
    squared_differences: float = 0.0
    max_abs: float = 0.0
    """The largest difference."""

    def add(self, other: "Distance") -> None:
        """Take in further elements."""
        self.elements += other.elements
        self.identical &= other.identical
        self.squares += other.squares
        self.squared_differences += other.squared_differences
        self.max_abs = other.max_abs if math.isnan(other.max_abs) else max(other.max_abs, self.max_abs)

    @property
    def relative_l2(self) -> float | None:
        """|b - a| / |a|; None where that has no value: a is 0, or something is not finite."""
        if self.squared_differences == 0.0:
            return 0.0
        sums = (self.squares, self.squared_differences)
        return (
            math.sqrt(self.squared_differences / self.squares)
            if all(map(math.isfinite, sums)) and self.squares
            else None
        )

    def facts(self) -> dict[str, Any]:
        """As plain values; None for what is not finite."""
        return {
            "elements": self.elements,
            "identical": self.identical,
            "relative_l2": self.relative_l2,
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else None,
        }


def parameters(first: SavedRows, second: SavedRows, worst: int, *, average: bool) -> dict[str, Any]:
    """The distance of two checkpoints' parameters: by part, and of the tensors that are farthest apart.

    Args:
        worst: how many tensors are listed.
        average: compare the averages instead, of those that have one in both.
    """
    parts: defaultdict[str, Distance] = defaultdict(Distance)
    tensors = dict[str, Distance]()
    for name, distance in distances(first, second, average=average):
        parts[name.partition(".")[0]].add(distance)
        tensors[name] = distance
    differing = [name for name, distance in tensors.items() if not distance.identical]
    order = sorted(differing, key=lambda name: _badness(tensors[name]), reverse=True)
    return {
        "tensors": len(tensors),
        "identical": len(tensors) - len(differing),
        "parts": {part: distance.facts() for part, distance in parts.items()},
        "worst": {name: tensors[name].facts() for name in order[:worst]},
    }


def distances(first: SavedRows, second: SavedRows, *, average: bool) -> Iterator[tuple[str, Distance]]:
    """The distance of each parameter, or average, that both have in one size."""
    for name, size in first.sizes.items():
        both = second.sizes.get(name) == size
        if both and (not average or name in first.averaged & second.averaged):
            yield name, _distance(*(rows.row(name, average=average) for rows in (first, second)))


def unlike(first: SavedRows, second: SavedRows) -> dict[str, Any]:
    """Parameters that one alone has, or that are of other sizes."""
    shared = first.sizes.keys() & second.sizes.keys()
    sizes = {name: [first.sizes[name], second.sizes[name]] for name in shared}
    return {
        "only_in_a": sorted(first.sizes.keys() - shared),
        "only_in_b": sorted(second.sizes.keys() - shared),
        "of_other_sizes": {name: both for name, both in sorted(sizes.items()) if both[0] != both[1]},
    }


def _distance(a: Tensor, b: Tensor) -> Distance:
    """The distance of two rows, of which the second is overwritten."""
    if torch.equal(a.view(torch.int32), b.view(torch.int32)):
        return Distance(len(a), squares=_square(a))
    difference = b.sub_(a)
    return Distance(len(a), False, _square(a), _square(difference), float(difference.abs_().max()))


def _square(row: Tensor) -> float:
    return float(torch.linalg.vector_norm(row, dtype=torch.float64)) ** 2


def _badness(distance: Distance) -> float:
    relative = distance.relative_l2
    return math.inf if relative is None else relative
