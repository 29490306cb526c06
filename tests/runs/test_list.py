"""All runs of a folder."""

import json
from pathlib import Path

from typer.testing import CliRunner

from finetune.runs.__main__ import app
from tests.runs.pretend import pretend_run


def test_every_run_has_a_line_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    pretend_run(tmp_path / "fox", 300)
    pretend_run(tmp_path / "old", 200, state="finished", step=200, total_steps=200)
    for name, text in (("broken", '{"state": '), ("strange", "[]"), ("partial", '{"state": "running"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    (tmp_path / "no-run").mkdir()
    rows = json.loads(CliRunner().invoke(app, ["list", str(tmp_path), "--json"]).output)
    assert {row["name"]: row["health"] for row in rows} == {
        "fox": "healthy",
        "old": "finished",
        **dict.fromkeys(("broken", "strange", "partial"), "unreadable"),
    }
    fox, old = (next(row for row in rows if row["name"] == name) for name in ("fox", "old"))
    assert (fox["step"], fox["host"], old["eta_s"]) == (300, "foxbox", None)
    assert fox["eta_s"] > 0
    table = CliRunner().invoke(app, ["list", str(tmp_path)], env={"COLUMNS": "120"})
    assert table.exit_code == 0
    assert "300 of 154,000" in table.output
    assert table.output.count("unreadable") == 3


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    assert "no runs in" in CliRunner().invoke(app, ["list", str(tmp_path)]).output


def test_a_narrow_screen_has_what_matters_most(tmp_path: Path) -> None:
    pretend_run(tmp_path / "fox", 300)
    table = CliRunner().invoke(app, ["list", str(tmp_path)], env={"COLUMNS": "40"}).output
    assert table.splitlines()[1].split() == ["fox", "healthy", "300", "of", "154,000,", "0%"]
