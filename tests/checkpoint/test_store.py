"""Checkpoints: whole or not there, verified, never lost to a crash."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoint import store as store_module
from finetune.checkpoint.store import CheckpointStore, finished, newest_checkpoint
from finetune.errors import UserError


class OneRank:
    """A world of one."""

    rank = 0
    is_main = True

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        pass


class Crash(Exception):
    """Stands for a kill."""


def state(value: float) -> dict[str, Any]:
    return {"fragments": {"a.weight": [{"start": 0, "param": torch.full((1000,), value)}]}, "raw": [], "layout": {}}


def saved(folder: Path, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(folder, keep, OneRank())
    for step in steps:
        store.save(step, state(float(step)), {"identity": {"seed": 1}})
    return store


def value(folder: Path) -> float:
    checkpoint = CheckpointStore(folder, 3, OneRank()).newest(lambda _: None)
    assert checkpoint is not None
    loaded = checkpoint.read(0)["fragments"]["a.weight"][0]["param"]
    assert (loaded == loaded[0]).all()
    assert loaded[0] == checkpoint.step
    return float(loaded[0])


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 5, 10).newest(lambda _: None)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.world, checkpoint.meta) == (10, 1, {"identity": {"seed": 1}})
    assert checkpoint.folder.name == "step-00000010"
    assert value(tmp_path) == 10.0
    assert (tmp_path / "latest").read_text() == "step-00000010"
    assert newest_checkpoint(tmp_path).step == 10


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    assert saved(tmp_path).newest(lambda _: None) is None
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        newest_checkpoint(tmp_path)


def test_the_oldest_are_pruned(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20, keep=2)
    assert [path.name for path in finished(tmp_path)] == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("call", range(12))
def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Crash at the n-th operation that touches the disk for good: fsync, rename, replace, removal."""
    saved(tmp_path, 5)
    count = 0

    def crashing(original: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call + 1:
                raise Crash
            return original(*args, **kwargs)

        return operation

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(Path, "rename", crashing(Path.rename))
        patch.setattr(Path, "replace", crashing(Path.replace))
        patch.setattr(shutil, "rmtree", crashing(shutil.rmtree))
        try:
            saved(tmp_path, 10, keep=1)
            finished_whole = True
        except Crash:
            finished_whole = False
    assert finished_whole == (call >= count)
    assert value(tmp_path) in ({10.0} if finished_whole else {5.0, 10.0})
    saved(tmp_path, 15)  # the next start is not hindered by what lies about
    assert value(tmp_path) == 15.0


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, damage: str) -> None:
    store = saved(tmp_path, 5, 10)
    victim = tmp_path / "step-00000010" / ("manifest.json" if damage == "manifest" else "rank-00000.pt")
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    said: list[str] = []
    checkpoint = store.newest(said.append)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert len(said) == 1
    assert said[0].startswith("step-00000010: ")
    # Going on from there saves step 10 anew; the damaged one is kept under another name.
    store.save(10, state(10.0), {})
    assert value(tmp_path) == 10.0
    assert (tmp_path / "step-00000010.damaged-1").is_dir()


def test_all_damaged_is_an_error_and_never_a_silent_start(tmp_path: Path) -> None:
    store = saved(tmp_path, 5, 10)
    for folder in finished(tmp_path):
        (folder / "rank-00000.pt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be used \(step-00000010: .*step-00000005: "):
        store.newest(lambda _: None)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    saved(tmp_path, 5)
    path = tmp_path / "step-00000005" / "rank-00000.pt"
    torch.save({"evil": Evil()}, path)
    manifest = json.loads((tmp_path / "step-00000005" / "manifest.json").read_text())
    manifest["files"]["rank-00000.pt"] = {
        "size": path.stat().st_size,
        "sha256": store_module.file_sha256(path),
    }
    (tmp_path / "step-00000005" / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = newest_checkpoint(tmp_path)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.read(0)
