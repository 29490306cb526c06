"""What stops a run's processes: signals, deaths, and crashes that come again."""

import signal
from pathlib import Path

import pytest

from finetune.monitor.files import read_lines
from tests.faults.scene import Fault, Scene, assert_continuous, assert_same
from tests.processes import DEADLINE_S, assert_alone, members, signal_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PREEMPTED = 75
RANK_0, RANK_1 = "rank-00000.pt", "rank-00001.pt"


def assert_preempted(scene: Scene, *done: int) -> None:
    """The run has ended of its own will, after one of some numbers of steps, and nothing of these is lost."""
    assert scene.state == "preempted", scene.said[-4000:]
    assert max(scene.saved) in done
    assert_continuous(scene.run, max(scene.saved))


def test_sigterm_mid_step(scene: Scene, whole: Path) -> None:
    scene.fail(faults=[{"what": "SIGTERM", "steps": [5], "micro_batch": 1}])
    assert_preempted(scene, 5)
    assert f"exit status {PREEMPTED}" in scene.said
    assert_same(scene.finish(), whole)
    assert scene.resumed == [5]


@pytest.mark.faults
def test_sigterm_mid_save(scene: Scene, whole: Path) -> None:
    """What is being saved is saved, and after it the step that was being trained meanwhile."""
    scene.fail(faults=[{"what": "SIGTERM", "sync": f"*/step-00000006.tmp/{RANK_0}", "seconds": 1.0}])
    assert 6 in scene.saved
    assert_preempted(scene, 6, 7, 8)
    assert_same(scene.finish(), whole)


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_rank(pair: Scene, whole_pair: Path, rank: int) -> None:
    """All ranks agree on the step after which they save."""
    pair.fail(faults=[{"what": "SIGTERM", "steps": [5], "rank": rank}])
    assert_preempted(pair, 5, 6)
    assert_same(pair.finish(), whole_pair)


@pytest.mark.faults
def test_sigterm_to_all_processes(pair: Scene, whole_pair: Path) -> None:
    """As SLURM and a terminal do it: the launcher hears it too, and hands it on to ranks that have heard it."""
    process = pair.start()
    pair.until_step(process, 4)
    signal_all(process, signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_S) != 0
    assert_alone(process)
    assert_preempted(pair, *range(4, 9))
    assert_same(pair.finish(), whole_pair)


@pytest.mark.faults
def test_sigterm_twice(scene: Scene, whole: Path) -> None:
    """The second one ends the process at once, in the middle of saving."""
    first: Fault = {"what": "SIGTERM", "steps": [5]}
    late: Fault = {"what": "sleep", "seconds": 4.0, "steps": [5], "micro_batch": 1}
    second: Fault = {"what": "SIGTERM", "sync": f"*/step-00000005.tmp/{RANK_0}", "seconds": 60.0}
    scene.fail(faults=[first, late, second])
    assert scene.saved == [3]
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]


@pytest.mark.faults
@pytest.mark.parametrize(("run", "calm"), [("scene", "whole"), ("pair", "whole_pair")])
def test_launcher_killed(request: pytest.FixtureRequest, run: str, calm: str) -> None:
    """Its workers end too, after a last checkpoint, and leave no process behind."""
    killed: Scene = request.getfixturevalue(run)
    process = killed.start(faults=[{"what": "sleep", "seconds": 0.5, "steps": list(range(5, 13))}])
    killed.until_step(process, 4)
    process.kill()
    process.wait()
    assert_alone(process)
    assert_preempted(killed, *range(4, 13))
    assert_same(killed.finish(), request.getfixturevalue(calm))


@pytest.mark.faults
def test_one_rank_killed(pair: Scene, whole_pair: Path) -> None:
    """The launcher starts both ranks anew, and they go on from the last checkpoint."""
    process = pair.start(faults=[pair.at("SIGKILL", 5, saved=3, rank=1)], restarts=1)
    process.wait(timeout=DEADLINE_S)
    assert_alone(process)
    assert pair.state == "finished"
    assert pair.resumed == [3]
    assert_same(pair.run, whole_pair)


@pytest.mark.faults
def test_one_rank_killed_while_writing(pair: Scene, whole_pair: Path) -> None:
    pair.fail(faults=[{"what": "cut short and killed", "sync": f"*/step-00000006.tmp/{RANK_1}"}])
    assert pair.saved == [3]
    assert_same(pair.finish(), whole_pair)
    assert pair.resumed == [3]


@pytest.mark.faults
def test_crash_loop(scene: Scene, whole: Path) -> None:
    """Crashes at one step stop the run with their reasons, until its user has mended them."""
    for what in ("RuntimeError", "SIGKILL"):
        scene.fail("run.max_crashes_at_step=2", faults=[scene.at(what, 5, saved=3)])
        assert scene.saved == [3]
    before = len(scene.said)
    sentence = scene.refused("run.max_crashes_at_step=2")
    assert "step 5" in sentence
    assert "injected" in scene.said[before:]
    assert_same(scene.finish("run.max_crashes_at_step=3"), whole)


@pytest.mark.faults
def test_crash_loop_under_the_launcher(pair: Scene) -> None:
    """A launcher that would restart again and again gets nothing more to train."""
    pair.fail(
        "run.max_crashes_at_step=2",
        faults=[pair.at("SIGKILL", 5, saved=3, rank=1, attempt=None)],
        restarts=2,
    )
    (sentence,) = pair.sentences
    assert "step 5" in sentence
    assert [row["kind"] for row in read_lines(pair.run / "starts.jsonl")] == ["began", "ended"] * 2
    assert pair.resumed == [3]


def test_two_launches(scene: Scene, whole: Path, tmp_path: Path) -> None:
    """The second one is refused while the first lives, which knows nothing of it."""
    refused = tmp_path / "refused"
    process = scene.start(faults=[{"what": "wait", "steps": [5], "once": str(refused)}])
    scene.until_step(process, 4)
    sentence = scene.refused()
    refused.touch()
    (trainer,) = [str(pid) for pid in members(process) if pid != process.pid]
    assert str(scene.run) in sentence
    assert trainer in sentence
    assert process.wait(timeout=DEADLINE_S) == 0, scene.said[-4000:]
    assert_same(scene.run, whole)
    assert scene.resumed == []


@pytest.mark.faults
def test_stale_lock(scene: Scene, whole: Path) -> None:
    """What was killed holds no lock, whoever has its process's number now."""
    scene.fail(faults=[scene.at("SIGKILL", 5, saved=3)])
    assert (scene.run / "lock").exists()
    assert_same(scene.finish(), whole)
    assert not (scene.run / "lock").exists()
    assert scene.resumed == [3]
