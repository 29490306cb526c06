"""Looking at a run from its folder alone."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.monitor.files import append_lines, replace_text
from finetune.runs.__main__ import app
from finetune.runs.view.figures import KEYS
from tests.runs.pretend import pretend_run


def write_run(folder: Path, state: str, age_s: float = 0.0, **more: object) -> Path:
    folder.mkdir()
    status = {"name": "test", "state": state, "step": 5, "total_steps": 10, "heartbeat": time.time() - age_s}
    facts = {"heartbeat_s": 5.0, "eta_s": 90.0, "host": "box", "pid": 1, **more}
    (folder / "status.json").write_text(json.dumps({**status, **facts}))
    line = {"step": 5, "epoch": 0.5, "loss": 0.123456, "grad_norm": 1.0, "images_per_s": 7.0}
    append_lines(folder / "metrics.jsonl", [line])
    return folder


def shown(run: Path, *options: str) -> str:
    """The words on the screen, however its lines are broken."""
    return " ".join(CliRunner().invoke(app, ["status", str(run), *options]).output.split())


@pytest.mark.parametrize(
    ("state", "age_s", "code", "health"),
    [
        ("starting", 0, 0, "healthy"),
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
    table = CliRunner().invoke(app, ["status", str(run)])
    assert table.exit_code == code
    assert health in table.output
    assert "5 of 10" in table.output
    assert "0.12346" in table.output
    plain = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert plain.exit_code == code
    assert json.loads(plain.output)["health"] == health


@pytest.mark.parametrize("state", ["preempted", "failed"])
def test_status_tells_why_a_run_has_ended(tmp_path: Path, state: str) -> None:
    reason = "stopped by SIGTERM [after step 5]"
    assert reason not in shown(write_run(tmp_path / "silent", state))
    assert reason in shown(write_run(tmp_path / "run", state, reason=reason))


def test_status_tells_what_a_paused_run_waits_for(tmp_path: Path) -> None:
    outage = {"what": "https://data.example/1.tar", "reason": "503 [busy]"}
    assert "https://data.example/1.tar: 503 [busy]" in shown(write_run(tmp_path / "run", "paused", outage=outage))


def test_a_last_step_that_was_not_finite_is_no_obstacle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "preempted")
    append_lines(run / "metrics.jsonl", [{"step": 6, "loss": None, "grad_norm": None}])
    result = CliRunner().invoke(app, ["status", str(run)])
    assert result.exit_code == 7
    assert "6 of 10" in result.output
    assert "gradient norm" not in result.output


@pytest.mark.parametrize(
    "gone", ["metrics.jsonl", "intervals.jsonl", "validation.jsonl", "events.jsonl", "checkpoints"]
)
@pytest.mark.parametrize("how", ["missing", "empty", "cut short", "of another version"])
def test_whatever_files_a_run_has_it_is_shown(tmp_path: Path, gone: str, how: str) -> None:
    run = pretend_run(tmp_path / "run", 300)
    path = run / gone
    if path.is_dir():
        path.rename(run / "elsewhere")
    elif how == "missing":
        path.unlink()
    else:
        others = {
            "lr": 3,
            "loss": "low",
            "buckets": [1],
            "kind": 7,
            "time": 3,
            "loss_by_decile": {"a": None},
            "epoch": {},
        }
        text = {"empty": "", "cut short": '{"step": 30', "of another version": json.dumps(others) + "\n"}[how]
        path.write_text(text)
    result = CliRunner().invoke(app, ["status", str(run)])
    assert result.exit_code == 0, result.output
    assert "300 of" in result.output
    assert CliRunner().invoke(app, ["status", str(run), "--json"]).exit_code == 0


@pytest.mark.parametrize("width", [1, 30, 40, 71, 72, 80, 200])
def test_on_a_screen_of_any_width_the_figures_are_to_be_read(tmp_path: Path, width: int) -> None:
    run = pretend_run(tmp_path / "run", 300)
    result = CliRunner().invoke(app, ["status", str(run)], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert max(map(len, lines)) <= width
    if width >= 40:
        loss = next(line for line in lines if "loss, last step" in line)
        assert re.search(r"loss, last step +0\.\d{5}", loss)
        assert next(line for line in lines if line.lstrip().startswith("updates") or "  updates " in line)
        assert "1 checkpoint, the newest step-00000000" in result.output


def test_json_has_everything_under_its_documented_names(tmp_path: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["status", str(pretend_run(tmp_path / "run", 700)), "--json"]).output)
    assert facts.keys() >= {"state", "step", "total_steps", "health", "heartbeat_age_s", "checkpoints", "events"}
    assert set(facts["figures"]) <= set(KEYS)
    assert (facts["metrics"]["step"], facts["interval"]["step"], facts["validation"]["step"]) == (700, 700, 500)
    assert facts["figures"]["loss"] == facts["metrics"]["loss"]
    assert facts["figures"]["validation_loss"] == facts["validation"]["loss"]
    assert set(facts["curves"]) == {"loss", "validation_loss", "images_per_s", "grad_norm", "lr/unet", "lr/text"}
    for points in facts["curves"].values():
        assert all(point["low"] <= point["mean"] <= point["high"] for point in points)
        assert [point["step"] for point in points] == sorted(point["step"] for point in points)
    times = [event["time"] for event in facts["events"]]
    assert times == sorted(times, reverse=True)


def test_requests_that_nobody_has_taken_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "running")
    assert "not taken yet" not in shown(run)
    (run / "control").mkdir()
    (run / "control" / "1.json").write_text("{}")
    (run / "control" / "settings.jsonl").write_text("")
    assert "requests not taken yet 1" in shown(run)


def test_what_is_not_a_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "dancing", "heartbeat": 1, "heartbeat_s": 1}')
    for folder, sentence in ((tmp_path, "is not what a run has written"), (tmp_path / "none", "is not a run's folder")):
        command = [sys.executable, "-m", "finetune.runs", "status", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_watch_goes_on_until_ctrl_c_and_ends_with_the_health_of_then(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "running")
    command = [sys.executable, "-m", "finetune.runs", "status", str(run), "--watch"]
    screen, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=terminal, env={**os.environ, "COLUMNS": "100", "TERM": "xterm"})
    os.close(terminal)
    seen_until(screen, b"healthy")
    status = json.loads((run / "status.json").read_text())
    replace_text(run / "status.json", json.dumps({**status, "state": "failed"}))
    seen_until(screen, b"failed")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 4
    os.close(screen)


def seen_until(screen: int, text: bytes) -> None:
    """Read a terminal until a text stands on it; a test that waits for ever is ended by pytest."""
    seen = b""
    while text not in seen:
        seen += os.read(screen, 4096)


def test_text_in_a_run_is_no_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "failed", reason="[bold red]x[/nonsense]", name="[blink]fox", host="[/]")
    append_lines(run / "events.jsonl", [{"kind": "[red]a[/]", "reason": "[/b]"}])
    words = shown(run)
    for text in ("[blink]fox", "[bold red]x[/nonsense]", "[red]a[/]", "[/b]"):
        assert text in words


def test_secrets_are_blacked_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "failed", reason="https://me:hidden-secret@host/1.tar cannot be read")
    append_lines(run / "events.jsonl", [{"kind": "data outage", "what": "s3://key:hidden-secret@bucket/1.tar"}])
    assert "hidden-secret" not in shown(run)
