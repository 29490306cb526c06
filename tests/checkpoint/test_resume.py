"""What must not change between a checkpoint and the run that goes on from it."""

from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoint.resume import check_identity, package_versions
from finetune.checkpoint.store import Checkpoint
from finetune.data.config import BucketsConfig, DataConfig, SourceConfig
from finetune.data.prepare import PlanSettings
from finetune.errors import UserError
from finetune.feed import plan_identity

BASE = PlanSettings(micro_batch=4, global_batch=16, seed=1)
DATA = DataConfig(shards="x")


def checkpoint_of(data: DataConfig, settings: PlanSettings) -> Checkpoint:
    return Checkpoint(Path("step-5"), 5, 1, {"identity": plan_identity(data, settings)}, {})


@pytest.mark.parametrize(
    ("settings", "data", "name"),
    [
        (PlanSettings(4, 16, 2), DATA, r"run\.seed was 1"),
        (PlanSettings(8, 16, 1), DATA, r"train\.micro_batch was 4 .* and is 8 now"),
        (PlanSettings(4, 32, 1), DATA, r"train\.global_batch"),
        (BASE, DataConfig(shards="x", window_shards=2), r"data\.window_shards was 16"),
        (BASE, DataConfig(shards="x", buckets=BucketsConfig(step_px=32)), r"data\.buckets"),
        (BASE, DataConfig(sources={"shards": SourceConfig("x", repeats=2.0)}), r"data\.sources and their repeats"),
    ],
)
def test_whatever_changes_the_plan_is_refused_by_name(settings: PlanSettings, data: DataConfig, name: str) -> None:
    checkpoint = checkpoint_of(DATA, BASE)
    check_identity(checkpoint, plan_identity(DATA, BASE))
    with pytest.raises(UserError, match=name):
        check_identity(checkpoint, plan_identity(data, settings))


def test_what_does_not_change_the_plan_may_change() -> None:
    moved: Any = DataConfig(shards="/moved", workers=9, flip=0.5)
    check_identity(checkpoint_of(DATA, BASE), plan_identity(moved, BASE))


def test_versions_name_what_results_depend_on() -> None:
    assert {"torch", "deepspeed", "diffusers", "bitsandbytes"} <= set(package_versions())
