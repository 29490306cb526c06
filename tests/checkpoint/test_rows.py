"""What a checkpoint holds, one parameter at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.checkpoint.rows import SavedRows
from finetune.distributed.fragments import RankState
from finetune.errors import UserError
from tests.runs.saved import shared_out

SHAPES = {"unet.a": (3, 5), "unet.b": (7,), "text_encoder.c": (2, 2, 3), "unet.d": (1,)}


def some(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def opened(states: list[RankState], **options: Any) -> SavedRows:
    return SavedRows(states.__getitem__, len(states), **options)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 40])
def test_every_parameter_comes_back_however_it_was_cut(world: int) -> None:
    weights, averages = some(0), some(1)
    rows = opened(shared_out(weights, averages, world))
    assert rows.sizes == {name: weight.numel() for name, weight in weights.items()}
    assert rows.averaged == set(SHAPES)
    assert rows.kind == "adam"
    for name in SHAPES:
        assert torch.equal(rows.row(name), weights[name].flatten())
        assert torch.equal(rows.row(name, average=True), averages[name].flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_rounded_once(dtype: torch.dtype) -> None:
    weights = some(0)
    rows = opened(shared_out(weights, {}, 3))
    for name in SHAPES:
        assert torch.equal(rows.row(name, dtype=dtype), weights[name].flatten().to(dtype))


def test_the_weights_stand_for_an_average_that_is_not_there() -> None:
    weights = some(0)
    averages = {"unet.b": some(1)["unet.b"]}
    rows = opened(shared_out(weights, averages, 2))
    assert rows.averaged == {"unet.b"}
    assert torch.equal(rows.row("unet.b", average=True), averages["unet.b"])
    assert torch.equal(rows.row("unet.a", average=True), weights["unet.a"].flatten())


def test_files_are_mapped_anew_after_so_many_bytes() -> None:
    states = shared_out(some(0), {}, 2)
    asked: list[int] = []

    def read(rank: int) -> RankState:
        asked.append(rank)
        return states[rank]

    rows = SavedRows(read, 2, mapped_bytes=4 * 16)
    assert asked == [0, 1]
    rows.row("unet.a")  # 15 values, in both files
    assert asked == [0, 1]
    rows.row("unet.b")  # past 16 values, what was mapped is let go
    rows.row("unet.a")
    assert len(asked) > 2


def test_a_parameter_that_lacks_values_is_refused() -> None:
    (state,) = shared_out(some(0), {}, 1)
    fragment = state["fragments"]["unet.b"][0]
    fragment["param"], fragment["start"] = fragment["param"][:5], 2
    with pytest.raises(UserError, match=r"the checkpoint holds 5 of the 7 values of unet\.b"):
        opened([state]).row("unet.b")
