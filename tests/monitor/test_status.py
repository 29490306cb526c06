"""status.json and what is read from it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.monitor.status import StatusFile, health, read_status


def test_it_beats_without_being_told(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", 0.02, step=0)
    first = read_status(tmp_path)
    assert first["state"] == "starting"
    wait_until(lambda: read_status(tmp_path)["heartbeat"] != first["heartbeat"])
    status.update(state="running", step=7)
    status.close("finished")
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("finished", 7)


@pytest.mark.parametrize(
    ("state", "age_s", "expected"),
    [
        ("running", 1, "healthy"),
        ("starting", 1, "healthy"),
        ("running", 100, "stale"),
        ("failed", 100, "failed"),
        ("finished", 1e6, "finished"),
    ],
)
def test_health_is_judged_by_state_and_heartbeat(state: str, age_s: float, expected: str) -> None:
    assert health({"state": state, "heartbeat": 1000.0, "heartbeat_s": 5.0}, now=1000.0 + age_s) == expected


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run's folder .*give runs/NAME"):
        read_status(tmp_path)


def test_it_beats_again_after_a_disk_that_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def full(path: Path, text: str) -> None:
        tried.append(path)
        raise OSError("no space left on device")

    status = StatusFile(tmp_path / "status.json", 0.01, step=0)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.monitor.status.replace_text", full)
        wait_until(lambda: len(tried) > 1)
    status.update(step=7)
    wait_until(lambda: read_status(tmp_path)["step"] == 7)
    status.close("finished")


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", 0.001, filler="x" * 20000)
    for _ in range(300):
        assert json.loads((tmp_path / "status.json").read_text())["filler"].endswith("x")
    status.close("stopped")
