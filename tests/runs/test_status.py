"""Looking at a run from its folder alone."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.monitor.files import append_lines
from finetune.runs.__main__ import app


def write_run(folder: Path, state: str, age_s: float = 0.0) -> Path:
    folder.mkdir()
    status = {"name": "test", "state": state, "step": 5, "total_steps": 10, "heartbeat": time.time() - age_s}
    more = {"heartbeat_s": 5.0, "eta_s": 90.0, "host": "box", "pid": 1}
    (folder / "status.json").write_text(json.dumps({**status, **more}))
    line = {"step": 5, "epoch": 0.5, "loss": 0.123456, "grad_norm": 1.0, "images_per_s": 7.0}
    append_lines(folder / "metrics.jsonl", [line])
    return folder


@pytest.mark.parametrize(
    ("state", "age_s", "code", "health"),
    [
        ("running", 0, 0, "healthy"),
        ("running", 1000, 3, "stale"),
        ("failed", 0, 4, "failed"),
        ("stopped", 0, 5, "stopped"),
        ("preempted", 1000, 7, "preempted"),
        ("finished", 1000, 0, "finished"),
        ("paused", 0, 6, "paused"),
        ("paused", 1000, 3, "stale"),
    ],
)
def test_status_tells_by_table_json_and_exit_code(
    tmp_path: Path, state: str, age_s: float, code: int, health: str
) -> None:
    run = write_run(tmp_path / "run", state, age_s)
    shown = CliRunner().invoke(app, ["status", str(run)])
    assert shown.exit_code == code
    assert health in shown.output
    assert "5 of 10" in shown.output
    assert "0.12346" in shown.output
    plain = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert plain.exit_code == code
    assert json.loads(plain.output)["health"] == health


@pytest.mark.parametrize("state", ["preempted", "failed"])
def test_status_tells_why_a_run_has_ended(tmp_path: Path, state: str) -> None:
    run = write_run(tmp_path / "run", state)
    assert "reason" not in CliRunner().invoke(app, ["status", str(run)]).output
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "reason": "stopped by SIGTERM [after step 5]"}))
    assert "stopped by SIGTERM [after step 5]" in CliRunner().invoke(app, ["status", str(run)]).output


def test_a_last_step_that_was_not_finite_is_no_obstacle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "preempted")
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + json.dumps({"step": 6, "loss": None, "grad_norm": None}) + "\n")
    shown = CliRunner().invoke(app, ["status", str(run)])
    assert shown.exit_code == 7
    assert "grad_norm" not in shown.output
