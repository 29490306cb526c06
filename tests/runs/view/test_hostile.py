"""Whatever lies in a folder, all views of it answer: they may say that it cannot be read."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from finetune.errors import UserError
from finetune.monitor.status import read_status
from finetune.runs.list import list_runs
from finetune.runs.status import status
from finetune.runs.view.figures import KEYS
from finetune.runs.view.overview import overview, overviews, pictures
from finetune.runs.web.site import Site
from tests.runs.pretend import pretend_run

TEXTS = st.text(st.characters(), max_size=6)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 1e308, -1e308]))
NAMES = st.sampled_from(
    ["step", "total_steps", "name", "host", "reason", "outage", "kind", "time", "error", "what", "state", *KEYS]
)
STATES = st.sampled_from(["starting", "running", "paused", "finished", "preempted", "stopped", "failed"])
TIMES = st.datetimes().map(str) | st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, STATES, TIMES),
    lambda below: st.lists(below, max_size=10) | st.dictionaries(NAMES | TEXTS, below, max_size=3),
    max_leaves=10,
)
LINES = st.dictionaries(NAMES | TEXTS, VALUES, max_size=8)
LOGS = ("metrics.jsonl", "intervals.jsonl", "validation.jsonl", "events.jsonl")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """What a terminal gets, whose letters are UTF-8."""
    written = io.BytesIO()
    console = Console(file=io.TextIOWrapper(written, encoding="utf-8", write_through=True), width=120)
    for module in ("status", "list"):
        monkeypatch.setattr(f"finetune.runs.{module}.Console", lambda: console)
    yield written
    console.file.close()


def look_everywhere(runs: Path, screen: io.BytesIO) -> None:
    """Look at the runs of a folder in all ways; raises what is no answer."""
    list_runs(runs)
    try:
        for path in ("/", "/metrics", "/healthz"):
            assert Site(runs).answer(path, told=True).status in (200, 503)
        for name in overviews(runs):
            assert Site(runs).answer(f"/runs/{name}/", told=True).status in (200, 503, 404)
    finally:
        list_runs(runs, as_json=True)
    assert b"\x1b[2J" not in screen.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=LINES,
    state=STATES,
    lines=st.tuples(*[st.lists(LINES, max_size=3) for _ in LOGS]),
)
def test_any_values_in_any_file(
    tmp_path: Path, screen: io.BytesIO, said: dict[str, Any], state: str, lines: tuple[list[dict[str, Any]], ...]
) -> None:
    run = tmp_path / "runs" / "fox"
    run.mkdir(parents=True, exist_ok=True)
    usual = {"state": state, "heartbeat": time.time(), "heartbeat_s": 5.0, "host": "box", "pid": 1}
    (run / "status.json").write_text(json.dumps({**usual, **said}))
    for name, rows in zip(LOGS, lines, strict=True):
        (run / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    look_everywhere(run.parent, screen)
    try:
        with pytest.raises(SystemExit):
            status_of(run)
    except UserError:
        return
    assert overview(run).sentence.isprintable()


def status_of(run: Path) -> None:
    """What the command does with a run."""
    try:
        status(run)
    except Exception as ended:
        if type(ended).__name__ == "Exit":
            raise SystemExit from None
        raise


def test_bytes_that_are_no_text(tmp_path: Path, screen: io.BytesIO) -> None:
    noise = bytes(range(256)) * 200
    run = pretend_run(tmp_path / "runs" / "fox", 30)
    for name in LOGS:
        (run / name).write_bytes(noise)
    look_everywhere(run.parent, screen)
    for text in (noise, b"[" * 100_000, b'{"state": "finished"}'):
        (run / "status.json").write_bytes(text)
        look_everywhere(run.parent, screen)
        with pytest.raises(UserError, match="not what a run has written"):
            read_status(run)


@pytest.mark.parametrize("depth", [400, 990, 50_000])
def test_events_however_deep(tmp_path: Path, screen: io.BytesIO, depth: int) -> None:
    run = pretend_run(tmp_path / "runs" / "fox", 30)
    (run / "events.jsonl").write_text('{"kind": "x", "deep": ' + "[" * depth + "]" * depth + "}\n")
    look_everywhere(run.parent, screen)
    with pytest.raises(SystemExit):
        status_of(run)


@pytest.mark.parametrize("name", ["status.json", *LOGS])
def test_a_pipe_is_not_waited_for(tmp_path: Path, screen: io.BytesIO, name: str) -> None:
    run = pretend_run(tmp_path / "runs" / "fox", 30)
    (run / name).unlink()
    os.mkfifo(run / name)
    look_everywhere(run.parent, screen)


@pytest.mark.parametrize("name", [b"\xff", b"a\x1b[2Jb", b"<i>&'\"?#%2f"])
def test_names_that_cannot_be_shown(tmp_path: Path, screen: io.BytesIO, name: bytes) -> None:
    runs = tmp_path / "runs"
    fox = pretend_run(runs / "fox", 30)
    (fox / "samples").mkdir()
    (fox / "samples" / os.fsdecode(b"step-7-" + name + b".png")).write_bytes(b"")
    (fox / "samples" / "step-8.png").write_bytes(b"")
    pretend_run(runs / os.fsdecode(name), 30)
    look_everywhere(runs, screen)
    assert "step-8.png" in pictures(fox)
    assert Site(runs).answer("/runs/fox/samples/step-8.png", told=True).status == 200


def test_a_run_that_others_may_not_look_into_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fox", "private"):
        pretend_run(tmp_path / name, 30)
    stat = os.stat

    def denied(path: Any, **how: Any) -> os.stat_result:
        if "private/" in str(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, **how)

    monkeypatch.setattr("os.stat", denied)
    assert list(overviews(tmp_path)) == ["fox"]
