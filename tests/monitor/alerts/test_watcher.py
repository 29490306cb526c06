"""The watcher as a process of its own, beside runs that end in every way."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.monitor.alerts import watcher as module
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.outbox import FILE_NAME
from finetune.monitor.alerts.places import places
from finetune.monitor.alerts.watcher import ADDRESSES, watched
from finetune.monitor.events import EVENTS, EventLog
from finetune.monitor.status import StatusFile
from tests.monitor.alerts.receivers import Receiver, http_receiver, wait_for
from tests.processes import ENVIRONMENT, is_alive

pytestmark = pytest.mark.slow

SECRET = "planted-secret-0123456789"
STARTED = {"kind": "started", "step": 0}
OUTAGE = {"kind": "data outage", "what": "1.tar", "reason": "TimeoutError"}
BACK = {"kind": "data is back"}
STALLED = {"kind": "stalled rank", "step": 8, "reason": "rank 0 has been in backward of step 8 for 600 s"}


class Run:
    """A pretended run, and the watcher that it has started."""

    def __init__(self, folder: Path, address: str, heartbeat_s: float) -> None:
        command = [sys.executable, "-m", "tests.monitor.alerts.pretend", str(folder), str(heartbeat_s), address]
        # As under a launcher, whose workers end with what has started them.
        environment = {**ENVIRONMENT, "RANK": "0"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        wait_for(lambda: psutil.Process(self.process.pid).children() and (folder / "status.json").exists())
        [self.watcher] = psutil.Process(self.process.pid).children()

    def tell(self, *events: dict[str, Any]) -> None:
        """Have it write events."""
        assert self.process.stdin
        for event in events:
            self.process.stdin.write(json.dumps(event).encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Have it finish."""
        self.process.communicate(b"end\n", timeout=60)

    def die(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as one:
        yield one


class Begin:
    """Starts pretended runs, and sees to it that nothing is left of them."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        self.address = f"ntfy://{SECRET}@127.0.0.1:{receiver.port}/topic"
        self._processes: list[psutil.Process | subprocess.Popen[bytes]] = []

    def __call__(self, heartbeat_s: float = 5.0) -> Run:
        run = Run(self.folder, self.address, heartbeat_s)
        self._processes += [run.process, run.watcher]
        return run

    @property
    def undelivered(self) -> list[Any]:
        """What a watcher would send again after a kill."""
        found: list[Any] = json.loads((self.folder / FILE_NAME).read_text())["letters"]
        return found

    def by_hand(self) -> subprocess.Popen[bytes]:
        """Watch as a user would."""
        command = [sys.executable, "-m", "finetune.runs", "watch", str(self.folder)]
        process = subprocess.Popen(command, env={**ENVIRONMENT, ADDRESSES: self.address})
        self._processes.append(process)
        return process

    def clear(self) -> None:
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


@pytest.fixture
def begin(tmp_path: Path, receiver: Receiver) -> Iterator[Begin]:
    runs = Begin(tmp_path / "fox", receiver)
    yield runs
    runs.clear()


def test_a_run_that_finishes_is_told_and_its_watcher_ends(begin: Begin, receiver: Receiver) -> None:
    run = begin()
    run.tell(STARTED)
    wait_for(lambda: receiver.titles == ["fox: started"])
    run.end()
    wait_for(lambda: not is_alive(run.watcher.pid))
    assert receiver.titles == ["fox: started", "fox: finished"]


def test_a_kill_is_told_once_with_what_came_right_before_it(begin: Begin, receiver: Receiver) -> None:
    run = begin(heartbeat_s=0.5)
    run.tell(STARTED)
    wait_for(lambda: receiver.titles)
    assert SECRET not in str(run.watcher.cmdline())
    run.tell(STALLED)
    wait_for(lambda: "stalled" in (begin.folder / "events.jsonl").read_text())
    run.die()
    assert is_alive(run.watcher.pid)
    wait_for(lambda: not is_alive(run.watcher.pid))
    assert receiver.titles == ["fox: started", "fox: stalled in step 8", "fox: no heartbeat"]
    text = receiver.taken[-1][1]["message"]
    pattern = rf"of .*, process {run.process.pid}, for \d+ s. It was in backward of step 8; its process is gone."
    assert re.search(pattern, text)
    for path in begin.folder.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_nothing_is_told_twice_or_lost_when_a_watcher_dies(begin: Begin, receiver: Receiver) -> None:
    first = begin()
    first.tell(STARTED, OUTAGE)
    wait_for(lambda: len(receiver.titles) == 2 and not begin.undelivered)
    first.watcher.kill()
    first.tell(BACK)
    wait_for(lambda: "back" in (begin.folder / "events.jsonl").read_text())
    first.die()
    second = begin()
    second.tell({"kind": "resumed", "step": 5, "after": "killed"})
    wait_for(lambda: len(receiver.titles) == 4)
    second.end()
    wait_for(lambda: not is_alive(second.watcher.pid))
    told = ["started", "paused: data cannot be read", "data is back", "goes on after it was killed", "finished"]
    assert receiver.titles == [f"fox: {title}" for title in told]


def test_a_place_that_is_away_gets_the_end_later(begin: Begin, receiver: Receiver) -> None:
    receiver.status = 500
    run = begin()
    wait_for(lambda: (begin.folder / "alerts.json").exists())
    run.end()
    wait_for(lambda: "not delivered: finished (answered with 500)" in (begin.folder / "alerts.log").read_text())
    assert is_alive(run.watcher.pid)
    receiver.status = 200
    wait_for(lambda: not is_alive(run.watcher.pid))
    assert receiver.titles == ["fox: finished"]


def test_of_two_watchers_the_second_speaks_once_the_first_is_gone(begin: Begin, receiver: Receiver) -> None:
    run = begin(heartbeat_s=0.5)
    run.tell(STARTED)
    wait_for(lambda: receiver.titles)
    second = begin.by_hand()
    run.tell(OUTAGE)
    wait_for(lambda: len(receiver.titles) == 2 and not begin.undelivered)
    run.watcher.kill()
    run.die()
    wait_for(lambda: len(receiver.titles) == 3)
    again = begin()  # whose own watcher waits for the one that was started by hand
    again.tell({"kind": "resumed", "step": 5, "after": "killed"})
    wait_for(lambda: len(receiver.titles) == 4)
    again.end()
    assert second.wait(60) == 0
    wait_for(lambda: not is_alive(again.watcher.pid))
    told = ["started", "paused: data cannot be read", "no heartbeat", "goes on after it was killed", "finished"]
    assert receiver.titles == [f"fox: {title}" for title in told]


def test_a_watcher_that_has_lost_the_lock_says_nothing_more(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEWAL_S", 0.1)
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    status = StatusFile(tmp_path / "status.json", 5.0, step=7)
    events, [place], watchers = EventLog(tmp_path / EVENTS), places([receiver.ntfy]), []
    for _ in range(2):  # the second takes the lock from the first, as it would if the first had been suspended
        (tmp_path / "alerts.lock").unlink(missing_ok=True)
        watchers.append(threading.Thread(target=module.watch, args=(tmp_path, [place], AlertsConfig()), daemon=True))
        watchers[-1].start()
        wait_for((tmp_path / "alerts.lock").exists)
    time.sleep(1.0)  # the first notices within a renewal or two
    events.write("data outage", what="1.tar", reason="TimeoutError")
    wait_for(lambda: receiver.titles)
    events.write("finished")
    status.close("finished")
    for watcher in watchers:
        watcher.join(60)
    assert [title.partition(": ")[2] for title in receiver.titles] == ["paused: data cannot be read", "finished"]


@pytest.mark.parametrize("command", [["nowhere", "--to", "ntfy://topic"], ["nowhere"], [".", "--to", "ntfy://topic"]])
def test_a_mistake_is_told_in_a_sentence(tmp_path: Path, command: list[str]) -> None:
    whole = [sys.executable, "-m", "finetune.runs", "watch", *command]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(whole, cwd=tmp_path, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*(is not a run's folder|nobody is told).*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_nobody_to_tell_needs_no_watcher(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with watched(tmp_path, AlertsConfig(to=[""])):
        assert psutil.Process().children() == before
    assert not list(tmp_path.iterdir())


def test_the_watcher_imports_nothing_heavy() -> None:
    program = "import sys, finetune.runs.watch; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "diffusers", "wandb", "matplotlib", "PIL", "pyarrow"}
