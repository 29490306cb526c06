"""What must not change between a checkpoint and the run that goes on from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from finetune.checkpoint.resume import (
    NOTES,
    check_format,
    check_identity,
    check_model,
    package_versions,
    parameter_shapes,
)
from finetune.checkpoint.store import Checkpoint
from finetune.data.config import BucketsConfig, DataConfig, SourceConfig
from finetune.data.shapes import PlanSettings, Shape
from finetune.errors import UserError
from finetune.feed import plan_identity

SMALL, LARGE = BucketsConfig(512, 768), BucketsConfig(1024, 1536)
FIRST, LATER = Shape(0, SMALL, 4), Shape(3, LARGE, 2)
BASE = PlanSettings((FIRST,), global_batch=16, seed=1)
DATA = DataConfig(shards="x")


def checkpoint_of(data: DataConfig, settings: PlanSettings, settled: Sequence[int] = ()) -> Checkpoint:
    return Checkpoint(Path("step-5"), 5, 1, {"identity": plan_identity(data, settings, settled)}, {})


@pytest.mark.parametrize(
    ("settings", "data", "name"),
    [
        (replace(BASE, seed=2), DATA, r"run\.seed was 1"),
        (replace(BASE, shapes=(replace(FIRST, micro_batch=8),)), DATA, r"train\.micro_batch was 4 .* and is 8 now"),
        (replace(BASE, shapes=(replace(FIRST, buckets=LARGE),)), DATA, r"data\.buckets"),
        (replace(BASE, global_batch=32), DATA, r"train\.global_batch"),
        (BASE, DataConfig(shards="x", held_out=0.1), r"data\.held_out was 0\.0"),
        (BASE, DataConfig(shards="x", window_shards=2), r"data\.window_shards was 16"),
        (BASE, DataConfig(sources={"shards": SourceConfig("x", repeats=2.0)}), r"data\.sources and their repeats"),
    ],
)
def test_whatever_changes_the_plan_is_refused_by_name(settings: PlanSettings, data: DataConfig, name: str) -> None:
    checkpoint = checkpoint_of(DATA, BASE)
    check_identity(checkpoint, plan_identity(DATA, BASE, ()))
    with pytest.raises(UserError, match=name):
        check_identity(checkpoint, plan_identity(data, settings, ()))


def test_a_shape_that_has_begun_must_stay_and_a_later_one_may_change() -> None:
    two = replace(BASE, shapes=(FIRST, LATER))
    begun = checkpoint_of(DATA, two, settled=[3])
    check_identity(begun, plan_identity(DATA, two, [3]))
    for changed in (BASE, replace(BASE, shapes=(FIRST, replace(LATER, micro_batch=1)))):
        with pytest.raises(UserError, match="phases that change the data's shape"):
            check_identity(begun, plan_identity(DATA, changed, [3]))
    check_identity(checkpoint_of(DATA, two), plan_identity(DATA, BASE, ()))


def test_what_does_not_change_the_plan_may_change() -> None:
    moved: Any = DataConfig(shards="/moved", workers=9, flip=0.5)
    check_identity(checkpoint_of(DATA, BASE), plan_identity(moved, BASE, ()))


def test_versions_name_what_results_depend_on() -> None:
    assert {"longhaul", "torch", "deepspeed", "diffusers", "bitsandbytes"} <= set(package_versions())


def test_another_plan_is_refused_with_what_to_do() -> None:
    old = checkpoint_of(DATA, BASE)
    old.meta["identity"]["plan_version"] -= 1
    with pytest.raises(
        UserError, match=r"step-5 was saved by .* whose plan \(\d+\) .* finish the run with the version"
    ):
        check_identity(old, plan_identity(DATA, BASE, ()))


def test_a_model_of_another_shape_is_refused_by_the_first_parameter_that_differs() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    shapes = parameter_shapes(model)
    assert shapes == {"0.weight": [3, 2], "0.bias": [3], "1.weight": [1, 3]}
    saved = Checkpoint(Path("step-5"), 5, 1, {"model": shapes}, {})
    check_model(saved, parameter_shapes(model))
    for changed, sentence in (
        (
            nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1, bias=False)),
            r"0\.weight was of shape \[3, 2\] .* \[4, 2\] now",
        ),
        (nn.Sequential(nn.Linear(2, 3)), r"1\.weight was of shape \[1, 3\] .* is not there now"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), r"1\.bias was not there .* is of shape \[1\] now"),
    ):
        with pytest.raises(UserError, match=f"{sentence}, so model.path is of another model: put it back"):
            check_model(saved, parameter_shapes(changed))


def test_what_an_earlier_version_saved_is_refused_with_what_it_lacks() -> None:
    whole = Checkpoint(Path("step-5"), 5, 1, dict.fromkeys(NOTES), {})
    check_format(whole)
    with pytest.raises(UserError, match=r"earlier version of Longhaul \(it has no health, looked\)"):
        check_format(replace(whole, meta=dict.fromkeys(NOTES - {"health", "looked"})))
