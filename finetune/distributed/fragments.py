"""Parameters and optimizer state in pieces that know no topology: (parameter name, start) -> values.

However a strategy lays parameters out, what the optimizer steps is a list of flat tensors, each made of pieces of named
parameters. A rank saves its pieces; any other layout copies the overlaps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.distributed.moments import is_8bit, read_moments, write_moments
from finetune.errors import UserError

Fragment = dict[str, Any]
"""`start` and `step`, and flat fp32 tensors: `param`, and `exp_avg` and `exp_avg_sq` unless they are kept in 8 bits."""
RankState = dict[str, Any]
"""What one rank saves: `layout`; `fragments` {name: [Fragment]}; `raw`, for each flat tensor with 8-bit moments its
`state` as it is and the `pieces` that it is made of."""


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


def save_fragments(flats: Sequence[Flat], optimizer: torch.optim.Optimizer, layout: Mapping[str, Any]) -> RankState:
    """Copy this rank's share to the CPU; 8-bit moments as they are, since nothing else restores them exactly."""
    fragments: dict[str, list[Fragment]] = {}
    raw: list[dict[str, Any]] = []
    for flat in flats:
        state = optimizer.state.get(flat.tensor, {})
        values = {"param": flat.tensor.detach().view(-1)}
        if is_8bit(state):
            kept = {key: _copied(value, torch.device("cpu")) for key, value in state.items()}
            raw.append({"state": kept, "pieces": [tuple(piece) for piece in flat.pieces]})
        else:
            values |= read_moments(state)
            raw.append({})
        for piece in flat.pieces:
            copies = {key: _copied(piece.of(value), torch.device("cpu")) for key, value in values.items()}
            fragment = {"start": piece.start, "step": int(state.get("step", 0)), **copies}
            fragments.setdefault(piece.name, []).append(fragment)
    return {"layout": dict(layout), "fragments": fragments, "raw": raw}


def load_fragments(
    flats: Sequence[Flat],
    optimizer: torch.optim.Optimizer,
    layout: Mapping[str, Any],
    read: Callable[[int], RankState],
    world: int,
) -> None:
    """Restore parameters and optimizer state, of which there is none yet, from what `world` ranks saved.

    The same layout is restored bit by bit from this rank's own state. Any other, or another optimizer, takes what
    overlaps from all ranks; 8-bit moments are then quantised anew, in other blocks.

    Raises:
        UserError: the state is of a model of other parameters.
    """
    own = read(layout["rank"]) if layout["rank"] < world else None
    exact = own is not None and own["layout"] == layout
    saved = [own["fragments"]] if exact and own else [_with_moments(read(rank)) for rank in range(world)]
    for i, flat in enumerate(flats):
        moments, step = _restore(flat, saved)
        if exact and own and own["raw"][i]:
            state = own["raw"][i]["state"]
            optimizer.state[flat.tensor] = {key: _copied(value, flat.tensor.device) for key, value in state.items()}
        elif moments:
            write_moments(optimizer, flat.tensor, moments, step)


def load_parameters(module: nn.Module, read: Callable[[int], RankState], world: int) -> None:
    """Restore the parameters that train, and nothing else, from what `world` ranks saved; for tools.

    Raises:
        UserError: the state is of another model.
    """
    saved = [read(rank)["fragments"] for rank in range(world)]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            _restore(Flat(parameter, [Piece(name, 0, 0, parameter.numel())]), saved)


def _with_moments(state: RankState) -> dict[str, list[Fragment]]:
    """A rank's fragments, with the moments that it keeps in 8 bits dequantised."""
    fragments: dict[str, list[Fragment]] = {name: list(pieces) for name, pieces in state["fragments"].items()}
    for raw in filter(None, state["raw"]):
        moments = read_moments(raw["state"])
        for piece in (Piece(*values) for values in raw["pieces"]):
            parts = {key: piece.of(values) for key, values in moments.items()}
            fragments[piece.name] = [
                {**fragment, **parts} if fragment["start"] == piece.start else fragment
                for fragment in fragments[piece.name]
            ]
    return fragments


def _restore(flat: Flat, saved: Sequence[Mapping[str, list[Fragment]]]) -> tuple[dict[str, Tensor], int]:
    """Copy a flat tensor's values in place; its moments (none before the first step) and the step."""
    values = {"param": flat.tensor.detach().view(-1)}
    step = 0
    for piece in flat.pieces:
        found = 0
        for fragment in (f for fragments in saved for f in fragments.get(piece.name, ())):
            found += _copy_overlap(piece, fragment, values)
            step = fragment["step"]
        if found != piece.numel:
            raise UserError(
                f"the checkpoint holds {found} of the {piece.numel} values that {piece.name} needs: "
                "it is of another model, so start another run with another run.name"
            )
    return {key: value for key, value in values.items() if key != "param"}, step


def _copy_overlap(piece: Piece, fragment: Fragment, values: dict[str, Tensor]) -> int:
    """Copy what a fragment holds of a piece; how many elements that was. Moments are made on first sight."""
    first = max(piece.start, fragment["start"])
    end = min(piece.start + piece.numel, fragment["start"] + fragment["param"].numel())
    if first >= end:
        return 0
    there = piece.offset + first - piece.start
    for key, source in fragment.items():
        if isinstance(source, Tensor):
            target = values.setdefault(key, torch.zeros_like(values["param"]))
            target[there : there + end - first].copy_(source[first - fragment["start"] : end - fragment["start"]])
    return int(end - first)


def _copied(value: Any, device: torch.device) -> Any:
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value
