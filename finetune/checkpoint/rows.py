"""What a checkpoint holds of each parameter, read one at a time: however large the checkpoint is, little memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.distributed.fragments import Fragment, Piece, RankState, Saved, overlay
from finetune.errors import UserError

MAPPED_BYTES = 64 * 2**20


class SavedRows:
    """The parameters that the ranks of a run have saved, and their averages."""

    def __init__(self, read: Callable[[int], RankState], world: int, mapped_bytes: int = MAPPED_BYTES) -> None:
        """Look through the states of all ranks without reading a value.

        Args:
            read: gives the state that one of `world` ranks saved, mapped from its file.
            mapped_bytes: after so many the files are mapped anew, since what was read of a mapped file counts as the
                process's memory.
        """
        self._read, self._world = read, world
        self._mapped_bytes = mapped_bytes
        self._saved, self._read_bytes = Saved(read, world), 0
        self.kind: str | None = self._saved["kind"]
        """What the optimizer's state means."""
        self.sizes = dict[str, int]()
        """Number of elements of every parameter, by name."""
        self.averaged = set[str]()
        """The names of those that have an average."""
        for name, fragment in self._fragments():
            self.sizes[name] = max(self.sizes.get(name, 0), fragment["start"] + fragment["param"].numel())
            if "ema" in fragment:
                self.averaged.add(name)

    def row(self, name: str, *, average: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
        """A flattened parameter, or its average where there is one, in any type.

        Raises:
            UserError: a part of it is missing.
        """
        key = "ema" if average and name in self.averaged else "param"
        piece = Piece(name, 0, 0, self.sizes[name])
        values = {"param": torch.empty(piece.numel, dtype=dtype)}
        found = 0
        for state in self._saved.states():
            for fragment in state["fragments"].get(name, ()) if found < piece.numel else ():
                found += overlay(piece, fragment["start"], {"param": fragment[key]}, values)
        if found != piece.numel:
            raise UserError(f"the checkpoint holds {found} of the {piece.numel} values of {name}: take another step")
        self._count(4 * piece.numel)
        return values["param"]

    def _count(self, read_bytes: int) -> None:
        self._read_bytes += read_bytes
        if self._read_bytes > self._mapped_bytes:
            self._saved, self._read_bytes = Saved(self._read, self._world), 0

    def _fragments(self) -> list[tuple[str, Fragment]]:
        return [
            (name, fragment)
            for state in self._saved.states()
            for name, fragments in state["fragments"].items()
            for fragment in fragments
        ]
