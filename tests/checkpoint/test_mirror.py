"""Copies of checkpoints behind a URL: whole or not taken for one, and never the end of a run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.files import HashingFile
from finetune.checkpoint.store import Checkpoint, CheckpointStore, Marks, Upload, finished
from finetune.data import outage
from finetune.data.remote import Remote
from finetune.errors import UserError
from tests.ranks import OneRank, ThreadRank, on_threads
from tests.servers import s3_server


@pytest.fixture(params=["path", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where copies go; empty."""
    if request.param != "s3":
        yield f"{'file://' if request.param == 'file' else ''}{tmp_path / 'far'}"
        return
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{s3.bucket}/runs"


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder to which copies go."""
    return tmp_path / "far"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let faults of the network be raised at once."""
    monkeypatch.setattr(outage, "ATTEMPTS", 1)


def open_store(folder: Path, url: object, **settings: Any) -> CheckpointStore:
    return CheckpointStore(folder / "run" / "checkpoints", CheckpointConfig(upload=str(url), **settings), OneRank())


def save(store: CheckpointStore, *steps: int, border: bool = False) -> list[Upload]:
    """Save some steps, each copied before the next; what came of the copies."""
    for step in steps:
        store.save(step, {"step": torch.full((1000,), float(step))}, {"seed": 1}, Marks(phase_border=border))
        store.drain()
    return store.uploads()


def taken(folder: Path, url: object) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """What a start in a folder goes on from, and what it says."""
    said: list[tuple[str, str]] = []
    found = open_store(folder, url).newest(lambda kind, sentence: said.append((kind, sentence)))
    if found:
        assert (found.read(0)["step"] == found.step).all()
        assert found.damage() is None
        assert (found.folder.parent / "latest").read_text() == found.folder.name
    return found, said


def names(folder: Path) -> list[str]:
    return [path.name for path in finished(folder / "run" / "checkpoints")]


def test_a_run_goes_on_from_its_copy_on_a_new_machine(tmp_path: Path, url: str) -> None:
    outcomes = save(open_store(tmp_path / "old", url), 5, 10)
    assert outcomes == [Upload("step-00000005", None), Upload("step-00000010", None)]
    found, said = taken(tmp_path / "new", url)
    assert found is not None
    assert (found.step, found.meta) == (10, {"seed": 1})
    assert said == [("fetched checkpoint", f"step-00000010 comes from {said[0][1].split(' comes from ')[1]}")]
    assert said[0][1].endswith("/run/checkpoints")
    assert names(tmp_path / "new") == ["step-00000010"]
    # There it goes on, by the same rules.
    assert save(open_store(tmp_path / "new", url), 15) == [Upload("step-00000015", None)]
    again, said = taken(tmp_path / "new", url)
    assert again is not None
    assert (again.step, said) == (15, [])


def test_a_run_without_copies_starts_at_the_beginning(tmp_path: Path, url: str) -> None:
    assert taken(tmp_path, url) == (None, [])


def test_both_sides_are_pruned_by_the_same_rule(tmp_path: Path, url: str) -> None:
    store = open_store(tmp_path, url, keep=1, every_steps=5, keep_every_steps=20)
    save(store, 5, border=True)
    save(store, 10, 15, 20, 25, 30)
    there = ["step-00000005", "step-00000020", "step-00000030"]
    assert names(tmp_path) == there
    shown = {path.split("/")[-1] for path in Remote(5.0).find(f"{full(url)}/run/checkpoints/*")}
    assert shown == set(there)


def full(url: str) -> str:
    return url if "://" in url else f"file://{url}"


def test_what_has_no_copy_yet_is_not_removed(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    store = open_store(tmp_path, far, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", lambda *_: (_ for _ in ()).throw(OSError("s3://user:secret@host is away")))
        outcomes = save(store, 5, 10, 15)
    assert names(tmp_path) == ["step-00000005", "step-00000010", "step-00000015"]
    assert [outcome.name for outcome in outcomes] == names(tmp_path)
    assert outcomes[0].failure == "OSError: s3://***@host is away"
    assert not store.failed
    # The next save makes up for it: what is to be kept is copied, and nothing else is left.
    assert save(store, 20) == [Upload("step-00000020", None)]
    assert names(tmp_path) == ["step-00000020"]
    assert [path.name for path in finished(far / "run" / "checkpoints")] == ["step-00000020"]


def test_a_full_disk_comes_before_copies_that_cannot_be_made(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(Remote, "put", lambda *_: (_ for _ in ()).throw(OSError("away")))
    usage = shutil.disk_usage(tmp_path)
    store = open_store(tmp_path, far, keep=2)
    save(store, 5, 10, 15)
    assert len(names(tmp_path)) == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=8000))
    save(store, 20)
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("error", [OSError("away"), ZeroDivisionError("a fault of the file system's own")])
def test_nothing_that_goes_wrong_with_copies_stops_the_run(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, error: Exception
) -> None:
    store = open_store(tmp_path, far)
    monkeypatch.setattr(Remote, "find", lambda *_: (_ for _ in ()).throw(error))
    (outcome,) = save(store, 5)
    assert outcome.name is None
    assert str(error) in str(outcome.failure)
    assert not store.failed
    assert names(tmp_path) == ["step-00000005"]


def test_a_copy_that_is_not_what_was_written_is_told_and_made_again(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put = open_store(tmp_path, far), Remote.put

    def flipping(remote: Remote, path: Path, url: str) -> None:
        put(remote, path, url)
        copy = Path(url.removeprefix("file://"))
        data = bytearray(copy.read_bytes())
        data[-1] ^= 1
        copy.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", flipping)
        (outcome,) = save(store, 5)
    assert "rank-00000.pt is not what was written to it" in str(outcome.failure)
    assert not list(far.rglob("manifest.json"))
    assert taken(tmp_path / "new", far) == (None, [])
    assert save(store, 10) == [Upload("step-00000010", None), Upload("step-00000005", None)]


@pytest.mark.parametrize("call", range(2))
def test_half_a_copy_is_not_taken_for_one(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, call: int
) -> None:
    """An upload that ends before any of its files; whatever it leaves is used, and removed when its time has come."""
    store, put = open_store(tmp_path, far, keep=1), Remote.put
    save(store, 5)
    calls = [call]

    def dying(remote: Remote, path: Path, url: str) -> None:
        calls[0] -= 1
        if calls[0] < 0:
            raise OSError("away")
        put(remote, path, url)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", dying)
        save(store, 10)
    found, _ = taken(tmp_path / "new", far)
    assert found is not None
    assert found.step == 5
    save(store, 15)
    assert [path.name for path in finished(far / "run" / "checkpoints")] == ["step-00000015"]


def test_another_edition_of_a_step_takes_the_place_of_its_copy(tmp_path: Path, far: Path) -> None:
    save(open_store(tmp_path / "a", far), 5)
    other = open_store(tmp_path / "b", far)
    other.save(5, {"step": torch.full((1000,), 5.0)}, {"seed": 2})
    other.drain()
    assert other.uploads() == [Upload("step-00000005", None)]
    found, _ = taken(tmp_path / "new", far)
    assert found is not None
    assert found.meta == {"seed": 2}


def test_a_damaged_copy_is_passed_over(tmp_path: Path, far: Path) -> None:
    save(open_store(tmp_path / "old", far), 5, 10, 15)
    copies = far / "run" / "checkpoints"
    (copies / "step-00000015" / "rank-00000.pt").write_bytes(b"")
    (copies / "step-00000010" / "manifest.json").write_text('{"files": {"../../x": {}}}')
    found, said = taken(tmp_path / "new", far)
    assert found is not None
    assert found.step == 5
    assert [kind for kind, _ in said] == ["damaged checkpoint", "damaged checkpoint", "fetched checkpoint"]
    assert names(tmp_path / "new") == ["step-00000005"]
    shutil.rmtree(copies / "step-00000005")
    with pytest.raises(UserError, match=r"no copy in .* can be used \(step-00000015: .*step-00000010: "):
        taken(tmp_path / "newer", far)


def test_a_damaged_checkpoint_is_replaced_by_its_copy(tmp_path: Path, far: Path) -> None:
    save(open_store(tmp_path, far), 5, 10)
    own = tmp_path / "run" / "checkpoints"
    (own / "step-00000010" / "rank-00000.pt").write_bytes(b"")
    found, said = taken(tmp_path, far)
    assert found is not None
    assert found.step == 10
    assert sorted(kind for kind, _ in said) == ["damaged checkpoint", "fetched checkpoint"]
    assert (own / "step-00000010.damaged-1").is_dir()
    for folder in finished(own):
        (folder / "rank-00000.pt").write_bytes(b"")
    found, _ = taken(tmp_path, far)
    assert found is not None
    assert found.step == 10


def test_a_place_that_cannot_be_written_is_told_at_the_start_of_a_run(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    open_store(tmp_path, far).check_room(1)
    assert not list((far / "run" / "checkpoints").iterdir())
    store = open_store(tmp_path / "other", far)
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", lambda *_: (_ for _ in ()).throw(PermissionError("denied")))
        with pytest.raises(UserError, match=r"checkpoint\.upload: file://.* cannot be written \(denied\)"):
            store.check_room(1)
        store.save(5, {}, {})
        store.drain()
        store.check_room(1)  # a run that has begun goes on


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense:// cannot be read"):
        taken(tmp_path, "nonsense://bucket")


def test_copies_that_cannot_be_read_are_no_reason_to_begin_anew(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    save(open_store(tmp_path / "old", far), 5, 10)
    monkeypatch.setattr(Remote, "find", lambda *_: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(UserError, match=r"cannot be read \(away\), where checkpoints of this run may lie: .*=null"):
        taken(tmp_path / "new", far)
    # What the run has itself is good enough.
    (tmp_path / "old" / "run" / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    found, said = taken(tmp_path / "old", far)
    assert found is not None
    assert found.step == 5
    assert [kind for kind, _ in said] == ["upload failed", "damaged checkpoint"]


def test_a_fetch_that_breaks_off_leaves_nothing(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    save(open_store(tmp_path / "old", far), 5)
    with monkeypatch.context() as patch:
        patch.setattr(HashingFile, "write", lambda *_: (_ for _ in ()).throw(OSError("broken off")))
        with pytest.raises(UserError, match="broken off"):
            taken(tmp_path / "new", far)
    assert not list((tmp_path / "new").rglob("step-*"))


def test_all_ranks_take_what_the_first_has_fetched(tmp_path: Path, far: Path) -> None:
    save(open_store(tmp_path / "old", far), 5)
    config = CheckpointConfig(upload=str(far))

    def newest(rank: ThreadRank) -> int:
        found = CheckpointStore(tmp_path / "new" / "run" / "checkpoints", config, rank).newest(lambda *_: None)
        assert found is not None
        return found.step

    assert on_threads(2, newest) == [5, 5]


def test_the_end_of_a_run_that_is_started_again_makes_up_for_a_copy_that_was_cut_off(tmp_path: Path, far: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", CheckpointConfig(), OneRank())
    store.save(5, {"step": torch.full((1000,), 5.0)}, {"seed": 1})
    store.wait()
    beats: list[int] = []
    again = open_store(tmp_path, far)
    again.drain(lambda: beats.append(1))
    assert again.uploads() == [Upload("step-00000005", None)]
    assert [path.name for path in finished(far / "run" / "checkpoints")] == ["step-00000005"]
