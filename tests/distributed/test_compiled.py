"""Compiled blocks under strategies that share gradients among processes."""

from pathlib import Path

import pytest
import torch

from tests.forks import ended

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("ddp", 2), ("zero2", 2)])
def test_warming_up_leaves_no_trace_and_training_is_the_same(tmp_path: Path, strategy: str, world: int) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    ended(log, "tests.distributed.compiled", strategy, str(results), processes=world)
    assert results.exists(), log.read_text()[-4000:]
    found = torch.load(results, weights_only=True)
    assert found["untouched"]
    assert found["gradients"] == 0
    assert found["compiled"] == found["plain"]
    assert found["made_after"] == found["made"] > 0
    assert found["called"] > 0
