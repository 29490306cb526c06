"""Checkpoints: whole or not there, verified, never lost to a crash, written while the training goes on."""

import errno
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoint import files as files_module
from finetune.checkpoint import writer as writer_module
from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.files import HashingFile
from finetune.checkpoint.store import CheckpointStore, Marks, Saved, find, finished, newest_checkpoint, state_bytes
from finetune.data.index import file_sha256
from finetune.errors import UserError
from tests.ranks import OneRank, ThreadRank, forked, on_threads, save_checkpoint

PLENTY = CheckpointConfig(keep=100)


def state(value: float) -> dict[str, Any]:
    return {"fragments": {"a.weight": [{"start": 0, "param": torch.full((1000,), value)}]}, "raw": [], "layout": {}}


def silent(kind: str, sentence: str) -> None:
    """Hear nothing."""


def saved(folder: Path, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(folder, CheckpointConfig(keep=keep), OneRank())
    for step in steps:
        store.save(step, state(float(step)), {"identity": {"seed": 1}})
        store.wait()
    return store


def value(folder: Path) -> float:
    checkpoint = CheckpointStore(folder, PLENTY, OneRank()).newest(silent)
    assert checkpoint is not None
    loaded = checkpoint.read(0)["fragments"]["a.weight"][0]["param"]
    assert (loaded == loaded[0]).all()
    assert loaded[0] == checkpoint.step
    return float(loaded[0])


def names(folder: Path) -> list[str]:
    return [path.name for path in finished(folder)]


class Gate:
    """Holds the writing of checkpoints up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        original = HashingFile.write

        def write(file: HashingFile, data: bytes) -> int:
            self.reached.set()
            assert self.open.wait(30.0)
            return original(file, data)

        monkeypatch.setattr(HashingFile, "write", write)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 5, 10).newest(silent)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.world, checkpoint.meta) == (10, 1, {"identity": {"seed": 1}})
    assert checkpoint.folder.name == "step-00000010"
    assert checkpoint.size == sum(path.stat().st_size for path in checkpoint.folder.glob("*.pt"))
    assert value(tmp_path) == 10.0
    assert (tmp_path / "latest").read_text() == "step-00000010"
    assert newest_checkpoint(tmp_path).step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005", "step-00000010"]


def test_the_hash_taken_while_writing_is_the_files(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    checkpoint = newest_checkpoint(tmp_path)
    path = checkpoint.folder / "rank-00000.pt"
    assert checkpoint.files == {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}}


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    assert saved(tmp_path).newest(silent) is None
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    assert find(tmp_path, 5).step == 5
    with pytest.raises(UserError, match=r"no checkpoint of step 1,000: there are those of 5, 10"):
        find(tmp_path, 1000)
    with pytest.raises(UserError, match="there are those of none"):
        find(tmp_path / "nowhere", 5)


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    saved(tmp_path, 100_000_000, 99_999_999)
    assert names(tmp_path) == ["step-99999999", "step-100000000"]
    assert newest_checkpoint(tmp_path).step == 100_000_000


def test_the_oldest_are_pruned(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20, keep=2)
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_marks_keep_a_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, CheckpointConfig(every_steps=5, keep=1, keep_every_steps=20), OneRank())
    marks = {5: Marks(phase_border=True), 10: Marks(validation_loss=0.1), 15: Marks(validation_loss=0.2)}
    for step in range(5, 40, 5):
        store.save(step, state(step), {}, marks.get(step))
    store.wait()
    assert [int(name[-2:]) for name in names(tmp_path)] == [5, 10, 20, 35]


def test_what_is_held_stays_until_it_is_released(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, keep=1)
    store.hold(5)
    store.save(10, state(10.0), {})
    store.wait()
    assert names(tmp_path) == ["step-00000005", "step-00000010"]
    store.release(5)
    store.save(15, state(15.0), {})
    store.wait()
    assert names(tmp_path) == ["step-00000015"]


def test_what_a_run_goes_on_from_stays_until_it_has_saved_again(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10, 15, keep=1)
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=1), OneRank())
    assert store.rollback(20, silent).step == 15
    store._prune(100)
    assert names(tmp_path) == ["step-00000015"]


# In the background


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, gate = saved(tmp_path, 5), Gate(monkeypatch)
    assert [s.checkpoint.step for s in store.completed()] == [5]
    store.save(10, state(10.0), {})
    assert gate.reached.wait(30.0)
    assert not store.completed()
    assert not store.failed
    assert names(tmp_path) == ["step-00000005"]
    gate.open.set()
    checkpoint = store.wait()
    assert checkpoint is not None
    assert checkpoint.step == 10
    (done,) = store.completed()
    assert isinstance(done, Saved)
    assert done.checkpoint == checkpoint
    assert done.seconds > 0.0
    assert not store.completed()
    assert store.wait() == checkpoint


def test_the_next_save_waits_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, gate = saved(tmp_path), Gate(monkeypatch)
    store.save(5, state(5.0), {})
    next_one = threading.Thread(target=lambda: store.save(10, state(10.0), {}))
    next_one.start()
    next_one.join(0.2)
    assert next_one.is_alive()
    assert not (tmp_path / "step-00000010.tmp").exists()
    gate.open.set()
    next_one.join(30.0)
    store.wait()
    assert names(tmp_path) == ["step-00000005", "step-00000010"]


def test_waiting_that_is_interrupted_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    store, gate = saved(tmp_path), Gate(monkeypatch)
    store.save(5, state(5.0), {})
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            store.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    gate.open.set()
    checkpoint = store.wait()
    assert checkpoint is not None
    assert checkpoint.step == 5


def test_the_state_is_let_go_of_once_it_is_written(tmp_path: Path) -> None:
    store, tensor = saved(tmp_path), torch.zeros(1000)
    alive = weakref.ref(tensor)
    store.save(5, {"a": tensor}, {})
    del tensor
    store.wait()
    gc.collect()
    assert alive() is None


def test_notes_that_are_no_plain_values_are_a_mistake_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        saved(tmp_path).save(5, state(5.0), {"a": Path("b")})


def test_the_writers_death_comes_up_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("broken")))
        store.save(10, state(10.0), {})
        while not store.failed:
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError):
        store.save(15, state(15.0), {})
    assert not store.failed
    assert value(tmp_path) == 5.0
    assert not list(tmp_path.glob("*.tmp"))
    store.save(20, state(20.0), {})
    store.wait()
    assert value(tmp_path) == 20.0


def test_a_dying_process_does_not_wait_for_the_writer(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from finetune.checkpoint.background import in_background
in_background("checkpoint", lambda: (Path({str(tmp_path / "begun")!r}).touch(), time.sleep(60)))
while not Path({str(tmp_path / "begun")!r}).exists(): time.sleep(0.01)
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)
    assert time.monotonic() - began < 30.0


# Kills


def killing(original: Any, counter: list[int]) -> Any:
    """A function that kills the process the n-th time that any such function is called."""

    def operation(*args: Any, **kwargs: Any) -> Any:
        counter[0] -= 1
        if counter[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return operation


def save_until_killed(folder: Path, call: int) -> int:
    """Save step 10 in another process that is killed at its n-th operation on the disk."""

    def act(_: int) -> None:
        counter = [call]
        for owner, name in (
            *((os, name) for name in ("fsync", "unlink", "rmdir")),
            *((Path, name) for name in ("mkdir", "rename", "replace")),
            (HashingFile, "write"),
        ):
            setattr(owner, name, killing(getattr(owner, name), counter))
        saved(folder, 10, keep=1)

    return forked(1, act)[0]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Also the next start is not hindered by what lies about, and removes what is unfinished."""
    for call in range(100):
        folder = tmp_path / str(call) / "checkpoints"
        saved(folder, 5, keep=1)
        (folder / "step-00000010.tmp").mkdir()  # of an attempt before
        (folder / "step-00000010.tmp" / "rank-00000.pt").write_bytes(b"half")
        ended = save_until_killed(folder, call)
        assert value(folder) in ({10.0} if ended == 0 else {5.0, 10.0})
        assert (folder / "latest").read_text() == newest_checkpoint(folder).folder.name
        assert not list(folder.glob("*.tmp*"))
        saved(folder, 15)
        assert value(folder) == 15.0
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert 15 < call < 99


def test_a_removal_that_is_killed_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10)
    folder = tmp_path / "step-00000005"
    folder.rename(folder.with_suffix(".tmp"))
    assert store.newest(silent) is not None
    assert names(tmp_path) == ["step-00000010"]
    assert not list(tmp_path.glob("*.tmp"))


# Damage


def damage(folder: Path, how: str) -> None:
    """Damage a checkpoint."""
    victim = folder / ("manifest.json" if how.startswith("manifest") else "rank-00000.pt")
    data = bytearray(victim.read_bytes())
    if how in {"remove", "manifest removed"}:
        victim.unlink()
        return
    if how == "flip":
        data[len(data) // 2] ^= 1
    foreign = {
        "manifest foreign": b'{"a": [1, 2]}',
        "manifest list": b"[1]",
        "empty": b"",
        "manifest binary": b"\xff\0",
    }
    half = bytes(data[: len(data) // 2])
    victim.write_bytes(foreign.get(how, bytes(data) if how == "flip" else half))


WAYS = ["flip", "truncate", "empty", "remove", "manifest", "manifest removed", "manifest foreign", "manifest list"]


@pytest.mark.parametrize("how", [*WAYS, "manifest binary"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, how: str) -> None:
    store = saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010", how)
    said: list[tuple[str, str]] = []
    checkpoint = store.newest(lambda kind, sentence: said.append((kind, sentence)))
    assert checkpoint is not None
    assert checkpoint.step == 5
    ((kind, sentence),) = said
    assert kind == "damaged checkpoint"
    assert sentence.startswith("step-00000010: ")
    # It is kept under another name from then on, and `latest` names what the run went on from.
    assert names(tmp_path) == ["step-00000005"]
    assert (tmp_path / "step-00000010.damaged-1").is_dir()
    assert (tmp_path / "latest").read_text() == "step-00000005"
    store.save(10, state(10.0), {})
    store.wait()
    assert value(tmp_path) == 10.0
    damage(tmp_path / "step-00000010", how)
    assert value(tmp_path) == 5.0
    assert (tmp_path / "step-00000010.damaged-2").is_dir()


def test_what_is_damaged_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15)
    damage(tmp_path / "step-00000010", "manifest")
    store = saved(tmp_path, 20, 25, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-00000025"]
    damage(tmp_path / "step-00000025", "flip")
    assert store.newest(silent) is not None
    assert (tmp_path / "step-00000025.damaged-1").is_dir()
    for step in (30, 35, 40):
        store.save(step, state(step), {})
    store.wait()
    assert (tmp_path / "step-00000025.damaged-1").is_dir()
    assert (tmp_path / "step-00000010").is_dir()


@pytest.mark.parametrize("latest", [None, "", "step-00000099", "../elsewhere", "\udcff"])
def test_latest_is_mended(tmp_path: Path, latest: str | None) -> None:
    store = saved(tmp_path, 5, 10)
    if latest is None:
        (tmp_path / "latest").unlink()
    else:
        (tmp_path / "latest").write_bytes(latest.encode(errors="surrogateescape"))
    assert newest_checkpoint(tmp_path).step == 10
    checkpoint = store.newest(silent)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert (tmp_path / "latest").read_text() == "step-00000010"


def test_all_damaged_is_an_error_and_never_a_silent_start(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10)
    for folder in finished(tmp_path):
        (folder / "rank-00000.pt").unlink()
    for _ in range(2):  # nothing is set aside, so that the next start says the same
        with pytest.raises(UserError, match=r"no checkpoint in .* can be used \(step-00000010: .*step-00000005: "):
            store.newest(silent)
    assert names(tmp_path) == ["step-00000005", "step-00000010"]


def test_what_was_set_aside_is_remembered_when_nothing_else_is_left(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010", "flip")
    assert value(tmp_path) == 5.0
    shutil.rmtree(tmp_path / "step-00000005")
    with pytest.raises(UserError, match=r"\(step-00000010\.damaged-1: set aside at an earlier start\)"):
        store.newest(silent)


def test_rolling_back_takes_the_newest_whole_one_up_to_a_step(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10, 15, 20, keep=100)
    assert store.rollback(17, silent).step == 15
    assert store.rollback(15, silent).step == 15
    damage(tmp_path / "step-00000010", "flip")
    assert store.rollback(14, silent).step == 5
    assert names(tmp_path) == ["step-00000005", "step-00000015", "step-00000020"]
    assert saved(tmp_path / "other", 5).rollback(4, silent) is None


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    saved(tmp_path, 5)
    path = tmp_path / "step-00000005" / "rank-00000.pt"
    torch.save({"evil": Evil()}, path)
    manifest = json.loads((tmp_path / "step-00000005" / "manifest.json").read_text())
    manifest["files"]["rank-00000.pt"] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    (tmp_path / "step-00000005" / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = newest_checkpoint(tmp_path)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.read(0)


# Full and read-only disks


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    """What stands in for `Path.open`: what is opened for writing bytes raises once so many calls were made."""
    original = Path.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = original(path, *args, **kwargs)
        if path.suffix == ".pt" and args == ("wb",):
            calls = [after]

            class Full(io.BufferedWriter):
                def write(self, data: Any) -> int:
                    calls[0] -= 1
                    if calls[0] < 0:
                        raise OSError(number, os.strerror(number))
                    return super().write(data)

            return Full(file.detach())
        return file

    return opened


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "does not fit into"), (errno.EDQUOT, "does not fit into"), (errno.EROFS, "cannot be written into")],
)
def test_a_full_disk_is_the_users_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str, after: int
) -> None:
    store = saved(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing(number, after))
        store.save(10, state(10.0), {})
        with pytest.raises(UserError, match=rf"the checkpoint of step 10 {told} .*takes 0\.00 GiB") as raised:
            store.wait()
    assert isinstance(raised.value.__cause__, OSError)
    assert not list(tmp_path.glob("*.tmp"))  # what would take up room
    assert value(tmp_path) == 5.0


def test_another_fault_of_the_disk_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, 5)
    monkeypatch.setattr(Path, "open", failing(errno.EIO))
    store.save(10, state(10.0), {})
    with pytest.raises(OSError, match="Input/output error"):
        store.wait()
    assert value(tmp_path) == 5.0


@pytest.mark.parametrize("saved_before", [0, 1, 2, 3])
def test_there_has_to_be_room_for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_before: int) -> None:
    store = saved(tmp_path, *range(1, saved_before + 1), keep=2)
    free = 10_000_000_000
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(files_module.shutil, "disk_usage", lambda _: usage)
    enough = free if saved_before >= 2 else free // 2
    store.check_room(enough)
    with pytest.raises(UserError, match=r"has 9\.31 GiB of room, and a checkpoint takes .* make room"):
        store.check_room(enough + 1)


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        saved(tmp_path / "file" / "checkpoints").check_room(1)


def test_the_bytes_of_a_state() -> None:
    tensor = torch.zeros(10, dtype=torch.float64)
    assert state_bytes({"a": [tensor, {"b": tensor[:5]}], "c": (tensor, 1, "x"), "d": None}) == 80 + 40 + 80


# Several ranks


def test_the_files_of_all_ranks_make_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, [state(float(rank)) for rank in range(3)], 5, {"a": 1})
    assert (checkpoint.world, checkpoint.meta, sorted(checkpoint.files)) == (
        3,
        {"a": 1},
        ["rank-00000.pt", "rank-00001.pt", "rank-00002.pt"],
    )
    read, world = checkpoint.ranks
    assert [read(rank)["fragments"]["a.weight"][0]["param"][0] for rank in range(world)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_whichever_rank_sees_the_damage_all_agree(tmp_path: Path, readers: int, victim: int) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, [state(float(rank)) for rank in range(3)], step)
    path = tmp_path / "step-00000010" / f"rank-{victim:05d}.pt"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    said: list[str] = []

    def newest(rank: ThreadRank) -> int:
        checkpoint = CheckpointStore(tmp_path, PLENTY, rank).newest(lambda _, sentence: said.append(sentence))
        assert checkpoint is not None
        return checkpoint.step

    assert on_threads(readers, newest) == [5] * readers
    assert said == [f"step-00000010: {path.name} is not as it was written"]


def test_the_ranks_divide_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, [state(float(rank)) for rank in range(4)], 5)
    hashed: list[tuple[int, str]] = []
    from finetune.checkpoint import manifest as manifest_module

    def counted(path: Path) -> str:
        hashed.append((threading.get_ident(), path.name))
        return file_sha256(path)

    monkeypatch.setattr(manifest_module, "file_sha256", counted)
    on_threads(2, lambda rank: CheckpointStore(tmp_path, PLENTY, rank).newest(silent))
    assert sorted(name for _, name in hashed) == [f"rank-{rank:05d}.pt" for rank in range(4)]


def test_all_damaged_is_an_error_on_every_rank(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, [state(0.0), state(1.0)], 5)
    (tmp_path / "step-00000005" / "rank-00001.pt").write_bytes(b"")

    def newest(rank: ThreadRank) -> str:
        with pytest.raises(UserError, match=r"step-00000005: rank-00001\.pt has 0 bytes"):
            CheckpointStore(tmp_path, PLENTY, rank).newest(silent)
        return "refused"

    assert on_threads(2, newest) == ["refused"] * 2


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), UserError, "does not fit"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
        (ZeroDivisionError("broken"), OSError, "broken"),
    ],
)
def test_a_rank_that_cannot_write_is_heard_of_by_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: int,
    error: Exception,
    kind: type[Exception],
    told: str,
) -> None:
    save_checkpoint(tmp_path, [state(0.0), state(1.0)], 5)
    original = torch.save

    def save(content: Any, file: Any) -> None:
        if content["fragments"]["a.weight"][0]["param"][0] == victim:
            raise error
        original(content, file)

    monkeypatch.setattr(writer_module.torch, "save", save)

    def fails(rank: ThreadRank) -> None:
        store = CheckpointStore(tmp_path, PLENTY, rank)
        store.save(10, state(float(rank.rank)), {})
        own = type(error) if rank.rank == victim and not isinstance(error, OSError) else kind
        with pytest.raises(own, match=told):
            store.wait()

    on_threads(2, fails)
    assert names(tmp_path) == ["step-00000005"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    def fails(rank: ThreadRank) -> None:
        folder = tmp_path / str(rank.rank) / "checkpoints"
        with pytest.raises(UserError, match=r"rank 1 does not see .* all nodes share"):
            CheckpointStore(folder, PLENTY, rank).check_room(1)

    on_threads(2, fails)
