"""wandb's real library, against a stand-in for its server, servers that are none, and none at all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from finetune.monitor.config import WandbConfig
from finetune.monitor.events import EventLog
from finetune.monitor.files import read_lines
from finetune.monitor.trackers import trackers, wandb_run
from finetune.monitor.trackers.wandb_run import WandbTracker, has_wandb_key
from tests import tracked
from tests.wandb_server import KEY, LOOPBACK, StoredRun, WandbServer, wandb_server


@pytest.fixture(autouse=True)
def _without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def ids(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "wandb-run.json").read_text())
    return plain


def sync(folder: Path, server: WandbServer) -> None:
    """What the docs say that the user does."""
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes"]
    subprocess.run(
        command, cwd=folder, env={**os.environ, **server.environment}, check=True, capture_output=True, timeout=60
    )


def sent(folder: Path, steps: range, *, ended: Any = "finished", **opened: Any) -> None:
    to = tracked.open_all(folder, **opened)
    tracked.send(to, steps)
    to.close(ended)


def a_day(folder: Path, mode: str) -> None:
    """Preempted after 20 steps, resumed, killed after 30 with a checkpoint of 25, resumed, rolled back from 35 to 30
    and on after 37, preempted after 44, and finished."""
    sent(folder, range(1, 21), ended="preempted", mode=mode)
    process = tracked.start(folder, {}, until=30, end="killed", mode=mode, done=20, settle_s=4 * wandb_run.FLUSH_S)
    assert process.wait(tracked.DEADLINE_S) == -9
    to = tracked.open_all(folder, mode=mode, done=25, shown=30)
    to.log(25, {"validation/loss": 0.5})
    tracked.send(to, range(26, 36))
    to.rolled_back(30)
    tracked.send(to, range(38, 45))
    to.close("preempted")
    sent(folder, range(45, 51), mode=mode, done=44)


def assert_one_axis(run: StoredRun) -> None:
    """All keys are drawn over our own step, and neither axis goes backwards."""
    steps = [line["step"] for line in run.lines]
    assert steps == sorted(steps)
    assert [line["_step"] for line in run.lines] == list(range(len(steps)))
    metrics = run.config["_wandb"]["value"]["m"]
    assert [metric for metric in metrics if metric.get("1") == "step"]
    assert [metric for metric in metrics if metric.get("2") == "*" and metric["5"] == 1]  # of the first of these


def runs_in_order(folder: Path, server: WandbServer) -> list[StoredRun]:
    plain = ids(folder)
    assert set(server.runs) == {run["id"] for run in plain["runs"]}
    runs = [server.runs[run["id"]] for run in plain["runs"]]
    assert {run.group for run in runs} == {plain["group"]}
    return runs


@pytest.mark.slow
def test_offline_starts_are_joined_by_sync(tmp_path: Path) -> None:
    a_day(tmp_path, "offline")
    assert not (tmp_path / "events.jsonl").exists()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 5
    with wandb_server() as server:
        sync(tmp_path, server)
        first, second = runs_in_order(tmp_path, server)
    assert (first.name, second.name) == ("test", "test-2")
    assert [run["after_step"] for run in ids(tmp_path)["runs"]] == [0, 30]
    assert first.steps("loss") == list(range(1, 36))
    assert second.steps("loss") == list(range(38, 51))
    assert first.steps("samples") == [20, 30, 35]
    assert [line["loss"] for line in second.lines if "loss" in line] == [tracked.loss(step) for step in range(38, 51)]
    for run in (first, second):
        assert_one_axis(run)


@pytest.mark.slow
def test_online_starts_go_on_with_the_same_id(tmp_path: Path, server: WandbServer) -> None:
    a_day(tmp_path, "auto")
    assert not (tmp_path / "events.jsonl").exists()
    first, second = runs_in_order(tmp_path, server)
    # What was not sent when the process was killed comes from the start after it, from its checkpoint on.
    steps = first.steps("loss")
    assert len(set(steps)) == len(steps)
    assert {*range(1, 21), *range(26, 36)} <= set(steps) <= set(range(1, 36))
    assert second.steps("loss") == list(range(38, 51))
    assert (first.exit_code, second.exit_code) == (0, 0)
    for run in (first, second):
        assert_one_axis(run)


@pytest.mark.parametrize(("ended", "code"), [("finished", 0), ("preempted", 1), ("failed", 1), ("stopped", 1)])
def test_wandb_is_told_how_a_run_ended(tmp_path: Path, server: WandbServer, ended: str, code: int) -> None:
    to = tracked.open_all(tmp_path, mode="online")
    tracked.send(to, range(1, 3))
    to.alert("rolled back", "10 bad steps", "warn")
    to.close(ended)  # type: ignore[arg-type]
    (run,) = server.runs.values()
    assert run.exit_code == code
    (alert,) = server.alerts
    assert (alert["title"], alert["text"], alert["severity"]) == ("rolled back", "10 bad steps", "WARN")
    assert any(name.startswith("media/images/samples") for name in server.files)


def test_what_was_validated_late_is_sent_after_a_preemption(tmp_path: Path, server: WandbServer) -> None:
    sent(tmp_path, range(1, 6), mode="online", ended="preempted")
    to = tracked.open_all(tmp_path, mode="online", done=5)
    to.log(5, {"validation/loss": 0.5})
    to.log(6, {"loss": 0.5})
    to.close("finished")
    (run,) = server.runs.values()
    assert (run.steps("validation/loss"), run.steps("loss")) == ([5], [1, 2, 3, 4, 5, 6])


@pytest.mark.slow
def test_its_stop_button_is_a_sigint(tmp_path: Path, server: WandbServer) -> None:
    """Which asks a run to save and stop."""
    server.stopping = True
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        to = tracked.open_all(tmp_path, mode="online")
        to.log(1, {"loss": 1.0})
        assert asked.wait(tracked.DEADLINE_S)
        to.close("preempted")
    finally:
        signal.signal(signal.SIGINT, before)


class _Garbage(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = b'{"data": [42, "\xff'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def garbage() -> Iterator[int]:
    """The port of a server that answers with no sense."""
    http = ThreadingHTTPServer((LOOPBACK, 0), _Garbage)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield http.server_address[1]
    finally:
        http.shutdown()
        http.server_close()


@contextmanager
def silence() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server((LOOPBACK, 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextmanager
def nothing() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        yield probe.getsockname()[1]


@pytest.mark.parametrize("there", [garbage, silence, nothing])
def test_without_a_server_the_run_goes_on_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    monkeypatch.setattr(wandb_run, "INIT_S", 3.0)
    monkeypatch.setattr(trackers, "CLOSE_S", tracked.DEADLINE_S)
    with there() as port:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://user:secret@{LOOPBACK}:{port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        sent(tmp_path, range(1, 6), mode="online")
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["tracker"]) == ("tracker offline", "wandb")
    assert "secret" not in event["reason"]
    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        sync(tmp_path, server)
        (run,) = server.runs.values()
    assert run.steps("loss") == [1, 2, 3, 4, 5]


def test_a_server_that_falls_silent_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was not sent lies under RUN/wandb."""
    monkeypatch.setattr(wandb_run, "FINISH_S", 2.0)
    monkeypatch.setattr(trackers, "CLOSE_S", tracked.DEADLINE_S)
    with wandb_server() as first:
        for name, value in first.environment.items():
            monkeypatch.setenv(name, value)
        to = tracked.open_all(tmp_path, mode="online")
        to.log(1, {"loss": 1.0})
        while not first.runs:
            time.sleep(0.05)
    tracked.send(to, range(2, 6))
    to.close("finished")
    assert len(list((tmp_path / "wandb").glob("run-*/*.wandb"))) == 1


@pytest.mark.slow
def test_a_process_whose_wandb_is_stopped_ends(tmp_path: Path) -> None:
    """wandb would wait for its own process when the interpreter exits."""
    process = tracked.start(tmp_path, {}, until=3, end="stopped", mode="offline", settle_s=3.0, close_s=1.0)
    assert process.wait(tracked.DEADLINE_S) == 0
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["tracker"]) == ("tracker incomplete", "wandb")


class FakeRun:
    """A wandb run that does something at one of its methods."""

    summary: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, at: str, do: Any) -> None:
        for method in ("define_metric", "log", "alert", "mark_preempting", "finish"):
            setattr(self, method, do if method == at else lambda *_, **__: None)


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("method", ["init", "define_metric", "log", "alert", "mark_preempting", "finish"])
def test_whatever_wandb_does_ends_in_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, hangs: bool
) -> None:
    released = threading.Event()

    def broken(*_: object, **__: object) -> None:
        if hangs:
            released.wait()
        raise wandb.Error("no more")

    monkeypatch.setattr(trackers, "CLOSE_S", 0.5 if hangs else 30)
    monkeypatch.setattr(wandb, "init", broken if method == "init" else lambda **_: FakeRun(method, broken))
    to = tracked.open_all(tmp_path, mode="offline")
    to.log(1, {"loss": 1.0})
    to.alert("rolled back", "10 bad steps", "warn")
    to.close("preempted")
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert event["kind"] == ("tracker incomplete" if hangs else "tracker failed")
    assert hangs or event["reason"] == "no more"
    released.set()


def test_after_a_rollback_a_kill_leaves_nothing_to_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that goes on is another one before the old one has ended, which may take a while."""
    known: list[int] = []
    ending = FakeRun("finish", lambda *_, **__: known.append(len(ids(tmp_path)["runs"])))
    monkeypatch.setattr(wandb, "init", lambda **_: ending)
    tracker = WandbTracker(tmp_path, "test", WandbConfig(mode="offline"), {}, -1, EventLog(tmp_path / "events.jsonl"))
    tracker.open()
    tracker.rolled_back(3)
    assert known == [2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_no_secret_is_in_any_file_or_sent(tmp_path: Path, server: WandbServer, mode: str) -> None:
    """Of the command line, the environment and URLs in both."""
    url = server.url.replace("http://", "http://user:PLANTED@")
    environment = {"TOKEN": "PLANTED", "WANDB_NOTE": "PLANTED", "HTTP_PASSWORD": url, "HF_TOKEN": "PLANTED"}
    process = tracked.start(
        tmp_path, environment, "data.shards=" + url, "token=PLANTED", until=5, end="well", mode=mode
    )
    assert process.wait(tracked.DEADLINE_S) == 0
    if mode == "offline":
        sync(tmp_path, server)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert b"PLANTED" not in path.read_bytes(), path
        assert KEY.encode() not in path.read_bytes(), path
    (run,) = server.runs.values()
    assert run.steps("loss") == [1, 2, 3, 4, 5]
    assert "PLANTED" not in str(run)
    assert not any(b"PLANTED" in content for content in server.files.values())


@pytest.mark.parametrize("system", [False, True])
def test_the_machine_is_measured_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **settings: given.update(settings) or FakeRun("", None))
    config = WandbConfig(mode="offline", project="p", entity="us", system=system)
    tracker = WandbTracker(tmp_path, "test", config, {}, -1, EventLog(tmp_path / "events.jsonl"))
    tracker.open()
    assert given["settings"].x_disable_stats is not system
    assert (given["project"], given["entity"], given["resume"]) == ("p", "us", "allow")


def test_a_key_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_wandb_key()
