"""Any optimizer's state in terms of flat tensors: rows, single numbers, and blocks that belong to a whole tensor.

bitsandbytes' 8-bit moments are blocks; where their kind of optimizer has a 32-bit form, they turn into its rows and
back.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor

from finetune.distributed.fragments import Flat, Fragment, Piece, RankState, Saved, cut, on_cpu, overlay
from finetune.errors import UserError

BLOCK_8BIT = 256
STATES_8BIT = ("state1", "state2")
ROWS = {"adam": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",), "sgd": ("momentum_buffer",)}
"""For each kind of optimizer, what its 32-bit form calls bitsandbytes' two states."""


class OptimizerState:
    """What an optimizer remembers: the state of the tensors that it steps, and what it counts in its groups.

    A group's memory is restored where an optimizer of the same kind has stepped every one of its parameters; otherwise
    it starts anew, since what a group counts holds for all of its parameters.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, kind: str, flats: Sequence[Flat], names: Sequence[Sequence[str]]
    ) -> None:
        """An optimizer that has not stepped yet, its flat tensors, and the parameters of each of its groups."""
        self._optimizer = optimizer
        self._kind = kind
        self._flats = flats
        self._names = names
        self._fresh = [_settings(group) for group in optimizer.param_groups]
        states = STATES_8BIT if isinstance(optimizer, Optimizer8bit) else ()
        self._row_of = dict(zip(states, ROWS.get(kind, states), strict=False))

    def discard(self) -> None:
        """Forget everything, as if no step had been taken."""
        self._optimizer.state.clear()
        for group, fresh in zip(self._optimizer.param_groups, self._fresh, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(copy.deepcopy(fresh), params=parameters)

    def save(self, extra: Sequence[Mapping[str, Tensor]]) -> RankState:
        """Copy this rank's share to the CPU.

        Args:
            extra: further rows of each flat tensor, to be saved with it.
        """
        fragments: dict[str, list[Fragment]] = {}
        blocks: list[dict[str, Any]] = []
        for flat, more in zip(self._flats, extra, strict=True):
            if not flat.saved:
                continue
            rows, numbers, kept = self._read(flat)
            for name, fragment in cut(flat, {"param": flat.values, **more, **rows}, numbers):
                fragments.setdefault(name, []).append(fragment)
            blocks.append({**_place(flat), "state": {key: on_cpu(value) for key, value in kept.items()}})
        stepped = sorted({flat.group for flat in self._flats if self._optimizer.state.get(flat.tensor)})
        groups = [{"names": list(self._names[i]), "counted": self._counted(i)} for i in stepped]
        return {"kind": self._kind, "groups": groups, "fragments": fragments, "blocks": blocks}

    def load(self, saved: Saved) -> Iterator[Tensor | None]:
        """Restore all flat tensors and, of an optimizer that remembers nothing yet, what was saved of its kind.

        Yields:
            Of one flat tensor after the other, once it is restored, the moving average that was saved, if any.

        Raises:
            UserError: the state is of another model, or cannot be divided as it would have to be.
        """
        kept = self._kept(saved)
        for group, counted in zip(self._optimizer.param_groups, kept, strict=True):
            device = group["params"][0].device
            group.update({key: _on(device, value) for key, value in (counted or {}).items()})
        for flat in self._flats:
            keeps = kept[flat.group] is not None
            rows, numbers = saved.paste(flat, None if keeps else ["ema"])
            average = rows.pop("ema", None)
            if keeps:
                self._write(flat, rows, numbers, self._blocks(flat, saved, rows))
            yield average

    def _kept(self, saved: Saved) -> list[dict[str, Any] | None]:
        """For each group what it counted, or None where it starts anew."""
        groups = saved["groups"] if saved["kind"] == self._kind else []
        counted = {name: group["counted"] for group in groups for name in group["names"]}
        return [counted[names[0]] if all(n in counted for n in names) else None for names in self._names]

    def _counted(self, index: int) -> dict[str, Any]:
        """What has changed in a group since it was made, but for the rate."""
        fresh, now = self._fresh[index], _settings(self._optimizer.param_groups[index])
        return {k: on_cpu(v) for k, v in now.items() if k != "lr" and (k not in fresh or fresh[k] != v)}

    def _read(self, flat: Flat) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """A flat tensor's state: rows, single numbers, blocks."""
        rows, numbers, blocks = dict[str, Tensor](), dict[str, Any](), dict[str, Tensor]()
        for key, value in self._optimizer.state.get(flat.tensor, {}).items():
            if not isinstance(value, Tensor) or not value.dim():
                numbers[key] = on_cpu(value)
            elif value.shape == flat.tensor.shape and value.is_floating_point():
                rows[self._row_of.get(key, key)] = value.detach().reshape(-1)
            else:
                blocks[key] = value
        if self._row_of and numbers:
            numbers["step"] = torch.tensor(float(numbers["step"]))  # as torch counts
        return rows, numbers, blocks

    def _blocks(self, flat: Flat, saved: Saved, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The blocks that were saved of just this flat tensor; what others hold of it is added to its rows."""
        place = _place(flat)
        for state in saved.states():
            for entry in state["blocks"]:
                if self._takes(entry["state"]) and all(entry[key] == value for key, value in place.items()):
                    return dict(entry["state"])
        into = {"param": flat.values, **rows}
        for piece, source, blocks in _overlapping(flat, saved):
            overlay(piece, source.start, self._as_rows(source, blocks), into)
        rows.update({key: row for key, row in into.items() if key != "param"})
        return {}

    def _takes(self, blocks: Mapping[str, Tensor]) -> bool:
        """Whether an optimizer of the same kind, as this one is, keeps blocks as they are."""
        return "qmap1" not in blocks or bool(getattr(self._optimizer, "name2qmap", None))

    def _as_rows(self, piece: Piece, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of a piece of a flat tensor whose 8-bit moments are given. Raises UserError if others are."""
        names = ROWS.get(self._kind)
        if names is None or "qmap1" not in blocks:
            raise UserError(
                f"the optimizer's {next(iter(blocks))} of {piece.name} cannot be divided otherwise than it was saved: "
                "resume with the strategy and number of processes of before, or with another optimizer"
            )
        return {name: _dequantised(piece, blocks, number) for number, name in enumerate(names, start=1)}

    def _write(
        self, flat: Flat, rows: Mapping[str, Tensor], numbers: Mapping[str, Any], blocks: Mapping[str, Tensor]
    ) -> None:
        """Give the optimizer the state of a tensor that it has not stepped yet."""
        if not (rows or numbers or blocks):
            return
        if self._row_of:
            self._write_8bit(flat, rows, int(numbers.get("step", 1)), blocks)
            return
        device = flat.tensor.device
        # torch keeps the count of steps on the CPU, but for fused kernels, which count themselves.
        fused = self._optimizer.param_groups[flat.group].get("fused")
        counted = device if fused else torch.device("cpu")
        state = {key: row.view_as(flat.tensor) for key, row in rows.items()}
        state |= {key: _on(counted if key == "step" else device, value) for key, value in numbers.items()}
        state |= {key: _on(device, value) for key, value in blocks.items()}
        self._optimizer.state[flat.tensor] = state

    def _write_8bit(self, flat: Flat, rows: Mapping[str, Tensor], step: int, blocks: Mapping[str, Tensor]) -> None:
        optimizer: Any = self._optimizer
        group = optimizer.param_groups[flat.group]
        place = next(i for i, parameter in enumerate(group["params"]) if parameter is flat.tensor)
        optimizer.init_state(group, flat.tensor, flat.group, place)
        state = optimizer.state[flat.tensor]
        state["step"] = step
        for key, value in blocks.items():
            state[key].copy_(value)
        for key, name in self._row_of.items():
            if key not in blocks and name in rows:
                _quantise(rows[name].view_as(flat.tensor), state, key)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _place(flat: Flat) -> dict[str, Any]:
    return {"pieces": [tuple(piece) for piece in flat.pieces], "numel": flat.tensor.numel()}


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _overlapping(flat: Flat, saved: Saved) -> Iterator[tuple[Piece, Piece, Mapping[str, Tensor]]]:
    """Pieces of a flat tensor, with pieces of the same parameters that were saved in blocks, and these blocks."""
    wanted = {piece.name: piece for piece in flat.pieces}
    for state in saved.states():
        for entry in state["blocks"]:
            for source in (Piece(*values) for values in entry["pieces"] if entry["state"]):
                if source.name in wanted:
                    yield wanted[source.name], source, entry["state"]


def _dequantised(piece: Piece, blocks: Mapping[str, Tensor], number: int) -> Tensor:
    """A piece's own values of bitsandbytes' state `number`."""
    first, end = piece.offset // BLOCK_8BIT, -(-(piece.offset + piece.numel) // BLOCK_8BIT)
    codes = blocks[f"state{number}"].view(-1)[first * BLOCK_8BIT : end * BLOCK_8BIT]
    absmax, qmap = blocks[f"absmax{number}"][first:end], blocks[f"qmap{number}"]
    values: Tensor = dequantize_blockwise(codes, absmax=absmax, code=qmap, blocksize=BLOCK_8BIT)
    return piece._replace(offset=piece.offset - first * BLOCK_8BIT).of(values)


def _quantise(values: Tensor, state: Mapping[str, Tensor], key: str) -> None:
    """Write values to bitsandbytes' state of a name, which is 8-bit but for small tensors."""
    if state[key].dtype == torch.float32:
        state[key].copy_(values)
    else:
        number = key[-1]
        codes, scales = quantize_blockwise(values, code=state[f"qmap{number}"], blocksize=BLOCK_8BIT)
        state[key].copy_(codes)
        state[f"absmax{number}"].copy_(scales.absmax)
