"""A run that goes on with other processes and strategies after each kill."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.scene import MakeScene, Reference, Scene, assert_close

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
BY_OPTIMIZER = {"adamw": 1e-6, "adamw8bit": 1e-3}
"""How far the losses may lie from those of the run that nothing befell, relatively. Measured: 1.2e-7, which is a bit of
a float32, and 8.5e-5."""

Stage = tuple[str, int]
"""A strategy and a number of processes."""


def go_through(make_scene: MakeScene, folder: Path, optimizer: str, stages: Sequence[Stage]) -> Scene:
    """Kill every stage but the last one in the second step after a checkpoint."""
    scene = make_scene(folder, f"optim.name={optimizer}")
    for i, (strategy, count) in enumerate(stages):
        if i + 1 < len(stages):
            kill = scene.at("SIGKILL", 3 * i + 5, saved=3 * i + 3)
            scene.fail(f"strategy={strategy}", faults=[kill], processes=count)
        else:
            scene.finish(f"strategy={strategy}", processes=count)
    assert scene.resumed == [3 * i + 3 for i in range(len(stages) - 1)]
    return scene


@pytest.mark.parametrize("optimizer", BY_OPTIMIZER)
def test_world_2_1_4_2(optimizer: str, make_scene: MakeScene, reference: Reference, tmp_path: Path) -> None:
    stages = [("zero2", 2), ("zero2", 1), ("zero2", 4), ("zero2", 2)]
    scene = go_through(make_scene, tmp_path, optimizer, stages)
    whole = reference(f"optim.name={optimizer}", "strategy=zero2", processes=2)
    assert_close(scene.run, whole, BY_OPTIMIZER[optimizer])


@pytest.mark.parametrize("optimizer", BY_OPTIMIZER)
def test_zero2_zero3_ddp_single(optimizer: str, make_scene: MakeScene, reference: Reference, tmp_path: Path) -> None:
    scene = go_through(make_scene, tmp_path, optimizer, [("zero2", 2), ("zero3", 2), ("ddp", 2), ("single", 1)])
    whole = reference(f"optim.name={optimizer}", "strategy=zero2", processes=2)
    assert_close(scene.run, whole, BY_OPTIMIZER[optimizer])
