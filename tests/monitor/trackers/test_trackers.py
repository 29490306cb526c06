"""What the run's watch tells the trackers, and which there are."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Preempted
from finetune.monitor import watch as module
from tests import tracked
from tests.monitor.test_watch import flush, open_watch, record


class Recorder:
    """Stands in for all trackers."""

    def __init__(self, **opened: Any) -> None:
        self.opened = opened
        self.asked: list[tuple[object, ...]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.asked.append(("log", step))

    def alert(self, title: str, text: str, level: str) -> None:
        self.asked.append(("alert", title, text, level))

    def rolled_back(self, step: int) -> None:
        self.asked.append(("rolled_back", step))

    def close(self, ended: str) -> None:
        self.asked.append(("close", ended))


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    opened: list[Recorder] = []

    def open_recorder(*_: object, **named: Any) -> Recorder:
        opened.append(Recorder(**named))
        return opened[-1]

    monkeypatch.setattr(module, "open_trackers", open_recorder)
    return opened


def test_they_are_told_of_resumes_rollbacks_and_ends(tmp_path: Path, recorders: list[Recorder]) -> None:
    with suppress(Preempted), open_watch(tmp_path) as watch:
        for step in range(1, 9):
            record(watch, step)
            if step == 7:
                flush(watch)
        raise Preempted  # with a step that no tracker has
    with open_watch(tmp_path, done_steps=5) as watch:
        for step in range(6, 10):
            record(watch, step)
        flush(watch)
        watch.rolled_back(6, 12, "10 bad steps")
    places = [(one.opened["done_steps"], one.opened["shown_step"]) for one in recorders]
    assert places == [(0, None), (5, 7)]
    first, second = ([call[:2] for call in one.asked] for one in recorders)
    assert first[:1] + first[-2:] == [("alert", "started"), ("alert", "preempted"), ("close", "preempted")]
    assert first[1:-2] == [("log", step) for step in (1, 2, 3, 4, 5, 6, 7, 7)]
    assert second[:5] == [("log", step) for step in (6, 7, 8, 9, 9)]
    assert second[5:7] == [("alert", "rolled back to step 6"), ("rolled_back", 6)]
    assert second[7:] == [("alert", "finished"), ("close", "finished")]


def test_they_are_told_no_secrets(tmp_path: Path, recorders: list[Recorder]) -> None:
    with open_watch(tmp_path) as watch:
        watch.event("checkpoint failed", reason="https://me:hunter22@host/bucket cannot be written")
    texts = [str(call[2]) for call in recorders[0].asked if call[0] == "alert"]
    assert any("@host/bucket cannot be written" in text for text in texts)
    assert "hunter22" not in " ".join(texts)


def test_none_are_opened_where_the_recipe_wants_none(tmp_path: Path) -> None:
    to = tracked.open_all(tmp_path, mode="disabled", tensorboard=False)
    tracked.send(to, range(1, 4))
    to.close("finished")
    assert list(tmp_path.iterdir()) == []
