"""Which blocks are checkpointed where there is so much memory, on ranks that are played."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.memory import filling
from finetune.memory.activations import Block
from finetune.memory.filling import OutOfMemory, fill, most_saved, within_memory

BLOCKS = [Block("dear", 100, 100), Block("cheap", 50, 500), Block("middle", 50, 100), Block("nothing", 0, 0)]


class Ranks:
    """One rank, whose others say what they are told to."""

    rank, world, is_main = 0, 2, True

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self._other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self._other(value)]


class Model:
    """Takes what blocks that are not checkpointed keep, and has so much room for it."""

    def __init__(self, room: int, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give `seen` as what is left while everything is checkpointed."""
        self.room, self.tried = room, list[set[str]]()
        self.checkpoint({block.name for block in BLOCKS})
        monkeypatch.setattr(filling, "memory_left", lambda device: seen)

    def checkpoint(self, names: Collection[str]) -> None:
        self.kept = {block.name for block in BLOCKS if block.name not in names and block.bytes}

    def fits(self) -> bool:
        self.tried.append(self.kept)
        return sum(block.bytes for block in BLOCKS if block.name in self.kept) <= self.room

    def fill(self, other: Callable[[Any], Any] = lambda value: value) -> filling.Filling:
        return fill(Ranks(other), torch.device("cuda"), BLOCKS, checkpoint=self.checkpoint, fits=self.fits)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=12), st.integers(0, 400))
def test_what_is_kept_fits_and_nothing_more_does(given: list[tuple[int, int]], room: int) -> None:
    blocks = [Block(str(i), size, flops) for i, (size, flops) in enumerate(given)]
    kept = most_saved(blocks, room)
    left = room - sum(block.bytes for block in kept)
    assert left >= 0
    assert all(block.bytes > left for block in blocks if block not in kept and block.bytes)


def test_what_computes_most_for_its_bytes_is_kept_first() -> None:
    assert {block.name for block in most_saved(BLOCKS, 60)} == {"cheap"}
    assert {block.name for block in most_saved(BLOCKS, 100)} == {"cheap", "middle"}
    assert {block.name for block in most_saved(BLOCKS, 200)} == {"cheap", "middle", "dear"}


def test_memory_is_filled_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(100, 100, monkeypatch)
    found = model.fill()
    assert model.tried == [set(), {"cheap", "middle"}]
    assert model.kept == {"cheap", "middle"}
    assert found.checkpointed == ["dear", "nothing"]
    assert (found.kept_bytes, found.saved_share) == (100, 600 / 700)
    assert str(found).startswith("2 blocks are computed again")


def test_the_rank_that_has_least_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(1000, 1000, monkeypatch)
    model.fill(lambda value: 50)
    assert model.kept == {"cheap"}


def test_less_is_kept_where_a_step_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(60, 200, monkeypatch)
    model.fill()
    assert [len(kept) for kept in model.tried] == [0, 3, 2, 1]
    assert model.kept == {"cheap"}


@pytest.mark.parametrize(("room", "seen"), [(-1, 200), (0, 200), (1000, 0)])
def test_everything_is_checkpointed_where_nothing_is_left(
    room: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(room, seen, monkeypatch)
    found = model.fill()
    assert model.kept == set()
    assert found.checkpointed == [block.name for block in BLOCKS]


def out_of_memory() -> None:
    raise torch.cuda.OutOfMemoryError


def test_ranks_learn_together_that_memory_is_out() -> None:
    assert within_memory(Ranks(lambda fits: fits), lambda: 3) == 3
    for work, other in ((out_of_memory, lambda fits: True), (lambda: None, lambda fits: False)):
        with pytest.raises(OutOfMemory):
            within_memory(Ranks(other), work)
