"""Trackers: real files, steps in order, and no harm when they fail."""

import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.monitor import trackers as module
from finetune.monitor.config import MonitorConfig, WandbConfig
from finetune.monitor.events import EventLog
from finetune.monitor.files import read_lines
from finetune.monitor.trackers import TensorBoardTracker, Trackers, has_wandb_key, open_trackers


def events(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def test_tensorboard_keeps_each_step_once_over_a_resume(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path, 0)
    for step in range(1, 9):
        first.log(step, {"loss": 1.0 / step})
    first.image(8, "samples", Image.new("RGB", (8, 8)))
    first.close()
    resumed = TensorBoardTracker(tmp_path, 5)
    for step in range(6, 11):
        resumed.log(step, {"loss": 1.0 / step})
    resumed.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [scalar.step for scalar in reader.Scalars("loss")] == list(range(1, 11))


def test_wandb_writes_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = MonitorConfig(tensorboard=False, wandb=WandbConfig(mode="auto"))
    for _ in range(2):
        trackers = open_trackers(config, tmp_path, "test", {"optim": {"lr": 1.0}}, 0, events(tmp_path))
        trackers.log(1, {"loss": 0.5})
        trackers.image(1, "samples", Image.new("RGB", (8, 8)))
        trackers.close()
    assert read_lines(tmp_path / "events.jsonl") == []
    names = {path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}
    assert len(names) == 1  # both runs have the same id
    deadline = time.monotonic() + 30  # wandb's own process writes them
    while not all(path.stat().st_size > 100 for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_key_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_wandb_key()


class Broken:
    """Fails at everything."""

    calls = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls += 1
        raise OSError("no space left")

    def image(self, step: int, name: str, image: Image.Image) -> None:
        raise RuntimeError("gone")

    def close(self) -> None:
        raise ValueError("never opened")


@pytest.mark.parametrize("method", ["log", "image", "close"])
def test_a_tracker_that_fails_is_switched_off_and_the_rest_go_on(tmp_path: Path, method: str) -> None:
    class Good(Broken):
        seen = 0

        def log(self, step: int, values: dict[str, float]) -> None:
            self.seen += 1

        def image(self, step: int, name: str, image: Image.Image) -> None:
            self.seen += 1

        def close(self) -> None:
            self.seen += 1

    broken, good = Broken(), Good()
    trackers = Trackers(events(tmp_path))
    trackers.open("broken", lambda: broken)
    trackers.open("good", lambda: good)
    calls = {
        "log": lambda: trackers.log(1, {"loss": 1.0}),
        "image": lambda: trackers.image(1, "a", Image.new("RGB", (1, 1))),
        "close": trackers.close,
    }
    calls[method]()
    calls[method]()
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["tracker"]) == ("tracker failed", "broken")
    assert good.seen == 2


def test_a_tracker_that_cannot_open_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(module, "SummaryWriter", fail)
    trackers = open_trackers(
        MonitorConfig(wandb=WandbConfig(mode="disabled")), tmp_path, "test", {}, 0, events(tmp_path)
    )
    trackers.log(1, {"loss": 1.0})
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert event["reason"] == "read-only"
