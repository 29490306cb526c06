"""What can befall a checkpoint while it is written, and afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.scene import STEPS, Fault, Scene, assert_continuous, assert_same, checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RANK_FILE = "rank-00000.pt"


def test_kill_while_writing(scene: Scene, whole: Path) -> None:
    scene.fail(faults=[{"what": "cut short and killed", "sync": f"*/step-00000006.tmp/{RANK_FILE}"}])
    assert scene.saved == [3]
    assert (scene.checkpoints / "step-00000006.tmp").is_dir()
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]
