"""Parameters and optimizer state in pieces that know no topology: (parameter name, start) -> values.

However a strategy lays parameters out, what the optimizer steps is a list of flat tensors, each made of pieces of named
parameters. A rank saves its pieces; any other layout copies the overlaps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_blockwise
from torch import Tensor, nn

from finetune.errors import UserError

BLOCK_8BIT = 256
RankState = dict[str, Any]
"""What one rank saves: `layout`, `fragments` {name: [{start, step, param, exp_avg, exp_avg_sq}]}, `raw` 8-bit state."""


class Piece(NamedTuple):
    """A run of one parameter's elements inside a flat tensor."""

    name: str
    start: int
    """First element, counted within the flattened parameter."""
    offset: int
    """The same element's place in the flat tensor."""
    numel: int


@dataclass(frozen=True)
class Flat:
    """A tensor that the optimizer steps, and what it consists of."""

    tensor: Tensor
    pieces: list[Piece]


def save_fragments(flats: Sequence[Flat], optimizer: torch.optim.Optimizer, layout: Mapping[str, Any]) -> RankState:
    """Copy this rank's share to the CPU.

    Moments that are kept in 8 bits are saved twice: dequantised in the fragments, and as they are under `raw`, which
    alone restores them exactly where the layout is the same.
    """
    fragments: dict[str, list[dict[str, Any]]] = {}
    raw: list[dict[str, Any]] = []
    for flat in flats:
        state = optimizer.state.get(flat.tensor, {})
        values = {"param": flat.tensor.detach().view(-1), **_moments(state)}
        for piece in flat.pieces:
            copies = {k: v[piece.offset : piece.offset + piece.numel].cpu().clone() for k, v in values.items()}
            fragment = {"start": piece.start, "step": int(state.get("step", 0)), **copies}
            fragments.setdefault(piece.name, []).append(fragment)
        raw.append({k: _to_cpu(v) for k, v in state.items()} if _is_8bit(state) else {})
    return {"layout": dict(layout), "fragments": fragments, "raw": raw}


def load_fragments(
    flats: Sequence[Flat],
    optimizer: torch.optim.Optimizer,
    layout: Mapping[str, Any],
    read: Callable[[int], RankState],
    world: int,
) -> None:
    """Restore parameters and optimizer state, of which there is none yet, from what `world` ranks saved.

    The same layout is restored bit by bit from this rank's own state; any other from all ranks' fragments.

    Raises:
        UserError: 8-bit moments in another layout, or a model of other parameters.
    """
    own = read(layout["rank"]) if layout["rank"] < world else None
    if own is not None and own["layout"] == layout:
        states = [own]
    else:
        states = [read(rank) for rank in range(world)]
        if any(raw for state in states for raw in state["raw"]):
            raise UserError(
                f"the checkpoint holds 8-bit optimizer state of {world} processes under "
                f"{states[0]['layout']['strategy']}, which cannot be divided anew: start as many under that strategy"
            )
    for i, flat in enumerate(flats):
        moments = _restore(flat, [state["fragments"] for state in states])
        if moments:
            optimizer.state[flat.tensor] = moments
        if own is not None and own["layout"] == layout and own["raw"][i]:
            optimizer.state[flat.tensor] = {k: _to_device(v, flat.tensor) for k, v in own["raw"][i].items()}


def load_parameters(module: nn.Module, read: Callable[[int], RankState], world: int) -> None:
    """Restore the parameters that train, and nothing else, from what `world` ranks saved; for tools.

    Raises:
        UserError: the state is of another model.
    """
    saved = [read(rank)["fragments"] for rank in range(world)]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            _restore(Flat(parameter, [Piece(name, 0, 0, parameter.numel())]), saved)


def _restore(flat: Flat, saved: Sequence[Mapping[str, list[dict[str, Any]]]]) -> dict[str, Tensor]:
    """Copy a flat tensor's values in place; the optimizer state that belongs to it, empty before its first step."""
    values = {"param": flat.tensor.detach().view(-1)}
    step = 0
    for piece in flat.pieces:
        found = 0
        for fragment in (f for fragments in saved for f in fragments.get(piece.name, ())):
            found += _copy_overlap(piece, fragment, values, flat.tensor)
            step = fragment["step"]
        if found != piece.numel:
            raise UserError(
                f"the checkpoint holds {found} of the {piece.numel} values that {piece.name} needs: "
                "it is of another model, so start another run with another run.name"
            )
    moments = {k: v.view_as(flat.tensor) for k, v in values.items() if k != "param"}
    return {"step": torch.tensor(float(step)), **moments} if moments else {}


def _copy_overlap(piece: Piece, fragment: Mapping[str, Any], values: dict[str, Tensor], like: Tensor) -> int:
    """Copy what a fragment holds of a piece; how many elements that was. Moments are made on first sight."""
    first = max(piece.start, fragment["start"])
    end = min(piece.start + piece.numel, fragment["start"] + fragment["param"].numel())
    if first >= end:
        return 0
    for key, source in fragment.items():
        if isinstance(source, Tensor):
            target = values.setdefault(key, torch.zeros(like.numel(), dtype=source.dtype, device=like.device))
            there = piece.offset + first - piece.start
            target[there : there + end - first].copy_(source[first - fragment["start"] : end - fragment["start"]])
    return int(end - first)


def _is_8bit(state: Mapping[str, Any]) -> bool:
    return "state1" in state


def _moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """First and second moments as flat fp32 tensors, whichever optimizer keeps them; none before its first step."""
    if "exp_avg" in state:
        return {key: state[key].view(-1) for key in ("exp_avg", "exp_avg_sq")}
    if _is_8bit(state):
        return {"exp_avg": _dequantised(state, 1), "exp_avg_sq": _dequantised(state, 2)}
    return {}


def _dequantised(state: Mapping[str, Any], moment: int) -> Tensor:
    values: Tensor = state[f"state{moment}"]
    if values.dtype == torch.float32:  # bitsandbytes keeps small tensors in 32 bits
        return values.view(-1)
    absmax, code = state[f"absmax{moment}"], state[f"qmap{moment}"]
    dequantised: Tensor = dequantize_blockwise(values, absmax=absmax, code=code, blocksize=BLOCK_8BIT)
    return dequantised.view(-1)


def _to_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _to_device(value: Any, like: Tensor) -> Any:
    return value.to(like.device, copy=True) if isinstance(value, Tensor) else value
