"""A disk that runs full is told once, in time."""

from pathlib import Path

import pytest

from finetune.monitor.alerts import disk as module
from finetune.monitor.alerts.disk import DiskCheck

GIB = 1024**3


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Room in GiB by the folder's name, which tests change."""
    room = {"fox": 100.0, "checkpoints": 100.0}
    monkeypatch.setattr(module, "free_bytes", lambda folder: int(room[folder.name] * GIB))
    return room


def test_it_is_told_once_each_time(tmp_path: Path, free: dict[str, float]) -> None:
    check = DiskCheck(tmp_path / "fox", 5.0)
    assert check.look(GIB) is None
    free["fox"] = 4.5
    facts = {"folder": str(tmp_path / "fox"), "free_gib": 4.5, "needed_gib": 5.0}
    assert [check.look(GIB) for _ in range(3)] == [facts, None, None]
    free["fox"] = 5.1  # not enough to call it over
    assert check.look(GIB) is None
    free["fox"] = 4.5
    assert check.look(GIB) is None
    free["fox"] = 50.0
    assert check.look(GIB) is None
    free["fox"] = 4.5
    assert check.look(GIB) == facts


def test_the_next_checkpoint_has_to_fit_where_checkpoints_lie(tmp_path: Path, free: dict[str, float]) -> None:
    free["checkpoints"] = 20.0
    facts = {"folder": str(tmp_path / "fox" / "checkpoints"), "free_gib": 20.0, "needed_gib": 21.0}
    assert DiskCheck(tmp_path / "fox", 5.0).look(21 * GIB) == facts
    assert DiskCheck(tmp_path / "fox", 0.0).look(19 * GIB) is None


def test_a_real_file_system_answers(tmp_path: Path) -> None:
    assert DiskCheck(tmp_path, 0.0).look(0) is None
    assert DiskCheck(tmp_path, 1e9).look(0)
