"""What is looked at with every heartbeat."""

from pathlib import Path
from typing import Any

import pytest

from finetune.monitor.alerts import disk
from finetune.monitor.alerts.disk import DiskCheck
from finetune.monitor.metrics import MetricsLog
from finetune.monitor.rounds import Rounds

GIB = 2**30


class Page:
    """What is served, until it is not."""

    reason: str | None = None

    def poll(self) -> str | None:
        reason, self.reason = self.reason, None
        return reason


def rounds_of(folder: Path, events: list[tuple[str, dict[str, Any]]]) -> Rounds:
    (folder / "checkpoints").mkdir(exist_ok=True)
    notes = folder / "waiting"
    notes.mkdir(exist_ok=True)
    check, logs = DiskCheck(folder, 1.0), [MetricsLog(folder / "metrics.jsonl")]
    return Rounds(logs, notes, check, 3 * GIB, lambda kind, **fields: events.append((kind, fields)), lambda _: None)


def test_a_disk_that_has_no_room_for_the_next_checkpoint_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    look = rounds_of(tmp_path, events)
    for free in (4.0, 2.5, 2.4, 2.0):
        monkeypatch.setattr(disk, "free_bytes", lambda _, free=free: int(free * GIB))
        assert look() == {}
    ((kind, fields),) = events
    assert (kind, fields["free_gib"], fields["needed_gib"]) == ("disk nearly full", 2.5, 3.0)


def test_a_disk_that_does_not_answer_stops_no_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(folder: Path) -> int:
        raise OSError("stale file handle")

    monkeypatch.setattr(disk, "free_bytes", unreachable)
    assert rounds_of(tmp_path, [])() == {}


def test_a_page_that_is_not_served_any_more_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    look = rounds_of(tmp_path, events)
    page = Page()
    look.page = page  # type: ignore[assignment]
    look()
    page.reason = "the port is taken"
    look()
    look()
    assert events == [("page failed", {"reason": "the port is taken"})]


def test_notes_of_processes_that_were_killed_are_none(tmp_path: Path) -> None:
    notes = tmp_path / "waiting"
    notes.mkdir()
    (notes / "1.json").write_text('{"what": "s3://b/1.tar", "reason": "x", "since": 0}')
    events: list[tuple[str, dict[str, Any]]] = []
    assert rounds_of(tmp_path, events)() == {}
    (notes / "2.json").write_text('{"what": "s3://b/1.tar", "reason": "x", "since": 0}')
    look = rounds_of(tmp_path, events)
    (notes / "3.json").write_text('{"what": "s3://b/1.tar", "reason": "x", "since": 0}')
    assert look()["state"] == "paused"
    (notes / "3.json").unlink()
    assert look() == {}
    assert [kind for kind, _ in events] == ["data outage", "data is back"]
