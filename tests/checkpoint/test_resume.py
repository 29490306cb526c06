"""What must not change between a checkpoint and the run that goes on from it."""

from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoint.resume import check_identity, package_versions, plan_identity
from finetune.checkpoint.store import Checkpoint
from finetune.data.config import BucketsConfig, DataConfig
from finetune.errors import UserError

BASE: dict[str, Any] = {"index": "abc", "seed": 1, "micro_batch": 4, "global_batch": 16}
DATA = DataConfig(shards="x")


@pytest.mark.parametrize(
    ("changes", "data", "name"),
    [
        ({"index": "abd"}, DATA, "fingerprint of the index"),
        ({"seed": 2}, DATA, r"run\.seed was 1"),
        ({"micro_batch": 8}, DATA, r"train\.micro_batch was 4 .* and is 8 now"),
        ({"global_batch": 32}, DATA, r"train\.global_batch"),
        ({}, DataConfig(shards="x", window_shards=2), r"data\.window_shards was 16"),
        ({}, DataConfig(shards="x", buckets=BucketsConfig(step_px=32)), r"data\.buckets"),
    ],
)
def test_whatever_changes_the_plan_is_refused_by_name(changes: dict[str, Any], data: DataConfig, name: str) -> None:
    checkpoint = Checkpoint(Path("step-5"), 5, 1, {"identity": plan_identity(DATA, **BASE)}, {})
    check_identity(checkpoint, plan_identity(DATA, **BASE))
    with pytest.raises(UserError, match=name):
        check_identity(checkpoint, plan_identity(data, **{**BASE, **changes}))


def test_what_does_not_change_the_plan_may_change() -> None:
    checkpoint = Checkpoint(Path("step-5"), 5, 1, {"identity": plan_identity(DATA, **BASE)}, {})
    check_identity(checkpoint, plan_identity(DataConfig(shards="/moved", workers=9, flip=0.5), **BASE))


def test_versions_name_what_results_depend_on() -> None:
    assert {"torch", "deepspeed", "diffusers", "bitsandbytes"} <= set(package_versions())
