"""Parameters and optimizer state in pieces that know no topology: (parameter name, start) -> values.

However a strategy lays parameters out, what the optimizer steps is a list of flat tensors, each made of pieces of named
parameters. A rank saves its pieces; any other layout copies the overlaps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.errors import UserError

Fragment = dict[str, Any]
"""`start`; one-dimensional tensors of one length: `param`, `ema` where there is one, and those of the optimizer's state
that have a value for each element; and the state's single numbers (plain, or tensors of no dimension)."""
RankState = dict[str, Any]
"""What one rank saves: `fragments` {name: [Fragment]}; `blocks`, for each flat tensor its `pieces`, `numel` and the
`state` that is neither a value for each element nor a single number; `kind`, `groups`, `ema_steps`, `loss_scale`."""


class Piece(NamedTuple):
    """A run of one parameter's elements inside a flat tensor."""

    name: str
    start: int
    """First element, counted within the flattened parameter."""
    offset: int
    """The same element's place in the flat tensor."""
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """The piece of a flat tensor."""
        return flat[self.offset : self.offset + self.numel]


@dataclass(frozen=True)
class Flat:
    """A tensor that the optimizer steps, and what it consists of."""

    tensor: Tensor
    pieces: list[Piece]
    group: int = 0
    """Number of the optimizer's parameter group that it belongs to."""
    saved: bool = True
    """Whether this rank is the one that saves it."""

    @cached_property
    def values(self) -> Tensor:
        """The elements in one row, without their history; what is written there is the tensor's."""
        return self.tensor.detach().view(-1)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient by pieces, without the padding between them; empty where there is none."""
        gradient = self.tensor.grad
        if gradient is None or self._is_whole:
            return [] if gradient is None else [gradient]
        return [piece.of(gradient) for piece in self.pieces]

    @cached_property
    def _is_whole(self) -> bool:
        """Whether it is one piece without padding."""
        return len(self.pieces) == 1 and self.pieces[0].numel == self.tensor.numel()


class Ranks(NamedTuple):
    """A rank among others."""

    rank: int
    world: int


def whole(name: str, parameter: Tensor, group: int = 0) -> Flat:
    """A parameter that is a flat tensor of its own."""
    return Flat(parameter, [Piece(name, 0, 0, parameter.numel())], group)


def dealt(flats: Sequence[Flat], ranks: Ranks) -> list[Flat]:
    """Flat tensors that all ranks hold, each to be saved by one of them, so that all save about as much."""
    loads = [0] * ranks.world
    dealt = list(flats)
    for i in sorted(range(len(flats)), key=lambda i: -flats[i].tensor.numel()):
        saver = loads.index(min(loads))
        loads[saver] += flats[i].tensor.numel()
        dealt[i] = replace(flats[i], saved=saver == ranks.rank)
    return dealt


def cut(flat: Flat, values: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Iterator[tuple[str, Fragment]]:
    """Copy rows of a flat tensor's length to the CPU in its pieces: (parameter name, fragment)."""
    for piece in flat.pieces:
        copies = {key: on_cpu(piece.of(row)) for key, row in values.items()}
        yield piece.name, {"start": piece.start, **numbers, **copies}


class Saved:
    """What the ranks of a run have saved, read as far as it is needed, this rank's own first."""

    def __init__(self, read: Callable[[int], RankState], world: int, rank: int = 0) -> None:
        """`read(rank)` gives the state that one of `world` ranks saved; `rank` is the one that reads now."""
        self._read = cache(read)
        self._order = sorted(range(world), key=lambda other: other != rank)

    def __getitem__(self, key: str) -> Any:
        """An entry that all ranks have saved alike."""
        return self._read(self._order[0]).get(key)

    def states(self) -> Iterator[RankState]:
        """The states of all ranks."""
        return (self._read(rank) for rank in self._order)

    def paste(self, flat: Flat, only: Sequence[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copy a flat tensor's own values in place; parameters of which no rank saved anything have not been trained so
        far, and stay as they are.

        Args:
            only: of what else was saved, take these alone; None takes all.

        Returns:
            All else by name: rows of the flat tensor's length, and single numbers.

        Raises:
            UserError: a part of a parameter is missing.
        """
        values, numbers = {"param": flat.values}, dict[str, Any]()
        for piece in flat.pieces:
            found = 0
            for fragment in self._fragments(piece):
                rows, singles = _divided(fragment, only)
                copied = overlay(piece, fragment["start"], rows, values)
                found += copied
                numbers.update(singles if copied else {})
            if found != piece.numel and (found or self._holds(piece.name)):
                raise UserError(
                    f"the checkpoint holds {found} of the {piece.numel} values that {piece.name} needs: "
                    "it is of another model, so start another run with another run.name"
                )
        del values["param"]
        return values, numbers

    def _holds(self, name: str) -> bool:
        return any(name in state["fragments"] for state in self.states())

    def _fragments(self, piece: Piece) -> Iterator[Fragment]:
        """The fragments of a piece's parameter, until they cover the piece."""
        left = piece.numel
        for state in self.states():
            for fragment in state["fragments"].get(piece.name, ()):
                left -= _shared(piece, fragment["start"], fragment["param"].numel())
                yield fragment
            if left == 0:
                return


def overlay(piece: Piece, start: int, rows: Mapping[str, Tensor], into: dict[str, Tensor]) -> int:
    """Copy what rows that begin at a parameter's element `start` hold of a piece; how many elements that was.

    Args:
        into: rows of the flat tensor's length, `param` among them; others are made, of zeros, on first sight.
    """
    first = max(piece.start, start)
    there = piece.offset + first - piece.start
    shared = 0
    for key, row in rows.items():
        shared = _shared(piece, start, row.numel())
        if shared:
            target = into.setdefault(key, torch.zeros_like(into["param"], dtype=row.dtype))
            target[there : there + shared].copy_(row[first - start : first - start + shared])
    return shared


def saved_parameters(module: nn.Module, read: Callable[[int], RankState], world: int) -> dict[str, nn.Parameter]:
    """The parameters of a model that `world` ranks have saved, by name.

    Raises:
        UserError: one is saved that the model does not have.
    """
    parameters = dict(module.named_parameters())
    names = dict.fromkeys(name for state in Saved(read, world).states() for name in state["fragments"])
    for name in names:
        if name not in parameters:
            raise UserError(f"the checkpoint holds {name}, which the model has not: give the model that was trained")
    return {name: parameters[name] for name in names}


def on_cpu(value: Any) -> Any:
    """A copy of a tensor on the CPU; anything else as it is."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _shared(piece: Piece, start: int, numel: int) -> int:
    """How many elements a piece shares with `numel` elements that begin at `start`."""
    return max(0, min(piece.start + piece.numel, start + numel) - max(piece.start, start))


def _divided(fragment: Fragment, only: Sequence[str] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A fragment's rows, its parameter's among them, and its single numbers."""
    wanted = {k: v for k, v in fragment.items() if k != "start" and (only is None or k in (*only, "param"))}
    rows = {key: value for key, value in wanted.items() if isinstance(value, Tensor) and value.dim()}
    return rows, {key: value for key, value in wanted.items() if key not in rows}
