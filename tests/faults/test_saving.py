"""What befalls a checkpoint while it is written, and while it lies there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.faults.mounts import mounted
from tests.faults.scene import STEPS, Fault, Scene, assert_same, checkpoint
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RANK_FILE = "rank-00000.pt"
Damage = Callable[[Path], object]


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    """What is mounted in it is unmounted at the end."""
    with ExitStack() as stack:
        yield stack


def test_kill_while_writing(scene: Scene, whole: Path) -> None:
    scene.fail(faults=[{"what": "cut short and killed", "sync": f"*/step-00000006.tmp/{RANK_FILE}"}])
    assert scene.saved == [3]
    assert (scene.checkpoints / "step-00000006.tmp" / RANK_FILE).is_file()
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]
    assert not list(scene.checkpoints.glob("*.tmp"))


def test_kill_between_data_and_pointer(scene: Scene, whole: Path) -> None:
    scene.fail(faults=[{"what": "SIGKILL", "sync": "*/checkpoints/latest.tmp"}])
    assert scene.saved == [3]
    assert not (scene.checkpoints / "latest").exists()
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]
    assert (scene.checkpoints / "latest").read_text() == f"step-{STEPS:08d}"


@pytest.mark.faults
def test_kill_between_manifest_and_name(scene: Scene, whole: Path) -> None:
    scene.fail(faults=[{"what": "SIGKILL", "sync": "*/step-00000006.tmp/manifest.json"}])
    assert scene.saved == [3]
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]


def flip_a_bit(path: Path) -> None:
    """Of a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(path: Path) -> None:
    """Leave a file of no bytes."""
    path.write_bytes(b"")


DAMAGES = [
    pytest.param(flip_a_bit, id="bit_flip"),
    pytest.param(Path.unlink, id="missing", marks=pytest.mark.faults),
    pytest.param(empty, id="empty", marks=pytest.mark.faults),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(scene: Scene, whole: Path, damage: Damage) -> None:
    """The newest is set aside and the one before it taken."""
    scene.go_on_from(whole, 9)
    damage(checkpoint(scene.run, 9) / RANK_FILE)
    damaged = {path.name: path.read_bytes() for path in checkpoint(scene.run, 9).iterdir()}
    assert_same(scene.finish(), whole)
    assert scene.resumed == [6]
    (event,) = scene.events("damaged checkpoint")
    assert event["reason"].startswith(f"step-00000009: {RANK_FILE} ")
    aside = scene.checkpoints / "step-00000009.damaged-1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == damaged
    assert scene.saved == [3, 6, 9, STEPS]


def test_all_damaged(scene: Scene, whole: Path) -> None:
    """The run refuses with the list; it does not begin at 0, and what it has written stays."""
    scene.go_on_from(whole, 9)
    damages = {9: flip_a_bit, 6: Path.unlink, 3: empty}
    for step, damage in damages.items():
        damage(checkpoint(scene.run, step) / RANK_FILE)
    metrics = (scene.run / "metrics.jsonl").read_bytes()
    sentence = scene.refused()
    assert "no checkpoint" in sentence
    assert all(f"step-{step:08d}: {RANK_FILE}" in sentence for step in damages)
    assert (scene.run / "metrics.jsonl").read_bytes() == metrics
    assert scene.resumed == []


def ended_by_a_full_disk(scene: Scene, folder: Path) -> Path:
    """Start the run, and fill the disk of a folder once something is saved; what fills it."""
    process, filler = scene.start(), folder / "filler"
    wait_until(process, (scene.checkpoints / "latest").exists, scene.log)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    assert process.wait(timeout=300) != 0
    return filler


def test_disk_full(scene: Scene, whole: Path, mounts: ExitStack) -> None:
    """The disk of the checkpoints fills up between two of them; once there is room the run goes on."""
    mounted(mounts, scene.checkpoints, "-t", "tmpfs", "-o", "size=32m", "tmpfs")
    filler = ended_by_a_full_disk(scene, scene.checkpoints)
    (sentence,) = scene.sentences
    assert str(scene.checkpoints) in sentence
    assert "make room" in sentence
    assert scene.state == "failed"
    first = scene.saved
    filler.unlink()
    assert_same(scene.finish(), whole)
    assert scene.resumed == [max(first)]


@pytest.mark.faults
def test_disk_of_the_whole_run_full(scene: Scene, whole: Path, mounts: ExitStack) -> None:
    """Nothing can be told in its folder any more; once there is room the run goes on."""
    mounted(mounts, scene.run, "-t", "tmpfs", "-o", "size=48m", "tmpfs")
    filler = ended_by_a_full_disk(scene, scene.run)
    assert "No space left on device" in scene.said or "make room" in scene.said
    assert scene.saved
    filler.unlink()
    assert_same(scene.finish(), whole)


@pytest.mark.faults
def test_no_room_for_two_checkpoints(scene: Scene, mounts: ExitStack) -> None:
    """That is found before the first step."""
    mounted(mounts, scene.checkpoints, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    assert "there has to be room for 2" in scene.refused()
    assert not (scene.run / "metrics.jsonl").exists()


@pytest.mark.faults
def test_disk_full_by_quota(scene: Scene, whole: Path) -> None:
    """The disk says so only when the file is to be made durable, as network file systems do."""
    fault: Fault = {"what": "EDQUOT", "sync": f"*/step-00000006.tmp/{RANK_FILE}"}
    scene.fail(faults=[fault])
    assert "make room" in scene.sentences[0]
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]


@pytest.mark.faults
def test_read_only_folder(scene: Scene, whole: Path, mounts: ExitStack) -> None:
    """The superuser may write anywhere, but not on what is mounted to be read alone."""
    scene.go_on_from(whole, 6)
    with ExitStack() as inner:
        mounted(inner, scene.checkpoints, "--bind", "-o", "ro", str(scene.checkpoints))
        sentence = scene.refused()
        assert str(scene.checkpoints) in sentence
        assert "writ" in sentence
    assert_same(scene.finish(), whole)
    assert scene.resumed == [6]


@pytest.mark.faults
@pytest.mark.parametrize("what", ["EIO", "RuntimeError"])
def test_background_writer_dies(scene: Scene, whole: Path, what: str) -> None:
    """Its failure comes up in the loop within a step or two, and not only with the next checkpoint."""
    slow: Fault = {"what": "sleep", "seconds": 0.5, "steps": [7, 8]}
    scene.fail(faults=[{"what": what, "sync": f"*/step-00000006.tmp/{RANK_FILE}"}, slow])
    assert scene.saved == [3]
    assert scene.state == "failed"
    assert scene.status["step"] <= 8
    assert_same(scene.finish(), whole)
    assert scene.resumed == [3]
