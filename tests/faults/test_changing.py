"""What has changed when a run is started again, and what it is fed with."""

import shutil
from pathlib import Path

import pytest

from data_tools.indexing import index_folder
from finetune.data.index import Index
from tests.faults.scene import STEPS, Fault, Scene, assert_continuous, assert_same, assert_same_draws, metrics
from tests.processes import DEADLINE_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.faults
def test_changed_config(scene: Scene, whole: Path) -> None:
    """What changes the training has to be accepted; what does not passes."""
    scene.go_on_from(whole, 9)
    before = len(scene.said) if scene.log.exists() else 0
    sentence = scene.refused("optim.lr=1e-2")
    assert "run.accept_changes=true" in sentence
    assert "optim.lr  was 0.001, is 0.01" in scene.said[before:]
    run = scene.finish("optim.lr=1e-2", "run.accept_changes=true", "monitor.heartbeat_s=0.3")
    assert_continuous(run, STEPS)
    assert_same_draws(run, whole)
    assert [line["lr"]["unet"] for line in metrics(run)[9:]] == pytest.approx(
        [10 * line["lr"]["unet"] for line in metrics(whole)[9:]]
    )


@pytest.mark.faults
def test_safe_changes(scene: Scene, whole: Path) -> None:
    """Logging, sampling and saving are nobody's business."""
    scene.go_on_from(whole, 6)
    assert_same(scene.finish("monitor.flush_every_steps=3", "checkpoint.every_steps=4", "checkpoint.keep=2"), whole)


@pytest.mark.faults
def test_changed_model_shape(scene: Scene, whole: Path, tiny_sd2: Path) -> None:
    scene.go_on_from(whole, 9)
    sentence = scene.refused(f"model.path={tiny_sd2}", "run.accept_changes=true")
    assert "model" in sentence


@pytest.mark.faults
def test_changed_index(scene: Scene, whole: Path, pictures: Path, tmp_path: Path) -> None:
    """Other data is refused whatever is accepted; the data of before, at another place, is taken."""
    moved = shutil.copytree(pictures, tmp_path / "moved")
    scene.go_on_from(whole, 6)
    (moved / "shard-00001.tar").unlink()
    index_folder(moved, "auto", workers=1)
    for accept in ("false", "true"):
        sentence = scene.refused(f"data.shards={moved}", f"run.accept_changes={accept}")
        assert "index" in sentence
    shutil.rmtree(moved)
    shutil.copytree(pictures, moved)
    assert_same(scene.finish(f"data.shards={moved}"), whole)


@pytest.mark.faults
def test_all_shards_unreadable_for_good(scene: Scene, whole: Path, pictures: Path, tmp_path: Path) -> None:
    """Every picture is rubbish from one start to the next: the run stops with the list, and nothing of it is saved."""
    shards = shutil.copytree(pictures, tmp_path / "own")
    scene.go_on_from(whole, 6)
    index = Index.load(shards)
    for row in range(len(index)):
        span = index.spans(row)["image"]
        with Path(span.location).open("r+b") as file:
            file.seek(span.offset)
            file.write(bytes(span.size))
    sentence = scene.refused(f"data.shards={shards}")
    assert "could not be used" in sentence
    assert scene.state == "failed"
    assert scene.saved == [3, 6]
    assert_same(scene.finish(), whole)
    assert scene.resumed[-1] == 6


@pytest.mark.faults
def test_all_shards_unreadable_for_a_while(scene: Scene, whole: Path, tmp_path: Path) -> None:
    """The disk with the data fails in the middle: the run waits for it, and loses nothing."""
    mended = tmp_path / "mended"
    broken: Fault = {"what": "EIO", "call": "finetune.data.sources:_pread", "steps": [5], "until": str(mended)}
    process = scene.start("data.cache.alert_after_s=0.5", faults=[broken])
    wait_until(process, lambda: (scene.run / "status.json").exists() and scene.state == "paused", scene.log)
    mended.touch()
    assert process.wait(timeout=DEADLINE_S) == 0, scene.said[-4000:]
    assert_same(scene.run, whole)
    assert scene.events("data outage")


@pytest.mark.faults
def test_tracker_raises(scene: Scene, whole: Path) -> None:
    """A tracker that fails is switched off, and training goes on."""
    raises: Fault = {"what": "RuntimeError", "call": "finetune.monitor.trackers.tensorboard:TensorBoardTracker.log"}
    assert_same(scene.finish("monitor.tensorboard=true", faults=[raises]), whole)
    (event,) = scene.events("tracker failed")
    assert event["tracker"] == "tensorboard"
    assert event["reason"] == "injected"
