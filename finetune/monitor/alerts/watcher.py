"""Watches a run from a process of its own, which outlives it: sends alerts of what happens, and of silence."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
from filelock import SoftFileLease, Timeout

from finetune.errors import UserError
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.courier import Courier, Outcome
from finetune.monitor.alerts.outbox import FILE_NAME, Outbox
from finetune.monitor.alerts.places import Place, places
from finetune.monitor.alerts.rules import alert_of
from finetune.monitor.alerts.silence import Silence, whereabouts
from finetune.monitor.alerts.tail import new_events
from finetune.monitor.events import EVENTS
from finetune.monitor.status import ENDED, read_status
from finetune.parent import LAUNCHED

ADDRESSES = "LONGHAUL_ALERTS"
"""Variable with the addresses, between which there is white space."""
LOOK_S = 1.0
LEASE_S, RENEWAL_S = 60.0, 5.0
"""Another watcher waits until the lock has been silent for so long, or its holder's process on this machine is gone."""
CLOSING_S = 10.0
"""A run that ends waits so long at most for its last alerts."""


class Start:
    """The process whose start of a run a watcher belongs to."""

    def __init__(self, pid: int) -> None:
        self._me = (socket.gethostname(), pid)
        self._process: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs; one that has ended and waits to be reaped does not."""
        with suppress(psutil.NoSuchProcess):
            return bool(self._process and self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        return False

    def wrote(self, status: Mapping[str, Any] | None) -> bool:
        """Whether a status is this start's."""
        return status is not None and (status["host"], status["pid"]) == self._me


class Watcher:
    """Looks at a run's files again and again, and gives couriers what there is to tell."""

    def __init__(self, folder: Path, to: list[Place], config: AlertsConfig, start: Start | None) -> None:
        """Take up what the watcher before has left.

        Args:
            folder: the run's.
            start: what to end with; None watches until the run is finished.
        """
        self._folder = folder
        self._start = start
        self._outbox = Outbox(folder / FILE_NAME, config, [place.name for place in to])
        self._silence = Silence(self._outbox.silent)
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        name = folder.absolute().name
        self._couriers = {place.name: Courier(place, name, self._outcomes) for place in to}
        self._status: dict[str, Any] | None = None
        self._was_ours = False

    def watch(self, lost: threading.Event) -> None:
        """Watch until there is nothing left to watch, or to send.

        Args:
            lost: set once another watcher has taken over.

        Raises:
            UserError: there is no run in the folder.
        """
        before = time.monotonic()
        try:
            while not lost.is_set():
                now = time.monotonic()
                # Where this process itself was stopped for a while, that was nobody's silence.
                if self._look(min(now - before, 2 * LOOK_S)):
                    return
                before = now
                self._wait()
        finally:
            for courier in self._couriers.values():
                courier.close()
            if not lost.is_set():
                self._settle()

    def _look(self, passed_s: float) -> bool:
        """Look once; whether that was all."""
        alive = self._start is None or self._start.alive  # before all else: what a dead process has written is there
        self._status = self._read_status()
        ours = self._start is None or self._start.wrote(self._status)
        if self._was_ours and not ours:
            return True  # another start goes on, and has its own watcher
        self._was_ours = ours
        self._take_in_events()
        if ours and self._status:
            self._listen(self._status, passed_s, alive)
        self._outbox.sum_up(time.time())
        self._hand_over()
        return not self._outbox.letters and self._is_over(alive)

    def _is_over(self, alive: bool) -> bool:
        state = self._status["state"] if self._status else None
        if self._start is None:
            return state == "finished"
        if not self._was_ours:
            return not alive
        return state in ENDED or (not alive and self._silence.told is not None)

    def _read_status(self) -> dict[str, Any] | None:
        try:
            return read_status(self._folder)
        except OSError:  # of a file system that is away
            return self._status
        except UserError:
            if self._start is None:
                raise
            return None  # not written yet

    def _take_in_events(self) -> None:
        with suppress(OSError):
            events, offset = new_events(self._folder / EVENTS, self._outbox.offset)
            for event in events:
                self._take_in(event)
            self._outbox.offset = offset

    def _listen(self, status: Mapping[str, Any], passed_s: float, alive: bool) -> None:
        if kind := self._silence.look(status, passed_s):
            elsewhere = status["host"] != socket.gethostname()
            process = "its machine is another" if elsewhere else "its process is still there"
            facts = whereabouts(self._folder, status) if kind == "no heartbeat" else {"step": status["step"]}
            process = process if alive else "its process is gone"
            self._take_in({"kind": kind, "silent_s": self._silence.seconds, "process": process, **facts})
            self._outbox.silent = self._silence.told

    def _take_in(self, event: Mapping[str, Any]) -> None:
        if alert := alert_of(event):
            self._outbox.add(alert, time.time())

    def _hand_over(self) -> None:
        """Write down what is to be sent before it is sent."""
        self._outbox.save()
        while self._outbox.fresh:
            letter = self._outbox.fresh.pop(0)
            for name in letter.to:
                self._couriers[name].deliver(letter)

    def _wait(self) -> None:
        """Until something has been delivered, or it is time to look again."""
        with suppress(Empty):
            self._done(self._outcomes.get(timeout=LOOK_S))

    def _settle(self) -> None:
        """Take in what couriers have delivered."""
        while not self._outcomes.empty():
            self._done(self._outcomes.get())

    def _done(self, outcome: Outcome) -> None:
        self._outbox.done(outcome.letter, outcome.name)
        self._outbox.save()


def watch(folder: Path, to: list[Place], config: AlertsConfig, pid: int | None = None) -> None:
    """Watch a run until it is finished. Of several watchers of a run one speaks at a time, whoever holds its lock; the
    others wait, and go on where it has left off.

    Args:
        folder: the run's.
        pid: the process on this machine whose start of the run is watched, and no other.

    Raises:
        UserError: there is no run in the folder.
    """
    start = Start(pid) if pid else None
    lost = threading.Event()
    lease = SoftFileLease(
        folder / "alerts.lock",
        lease_duration=LEASE_S,
        heartbeat_interval=RENEWAL_S,
        on_compromise=lambda _: lost.set(),
        thread_local=False,
    )
    while True:
        try:
            lease.acquire(poll_interval=LOOK_S / 2, cancel_check=lambda: start is not None and not start.alive)
        except Timeout:  # the start is over, and another watcher speaks
            return
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error}): a watcher keeps in it what it has told; make it writable"
            ) from error
        try:
            Watcher(folder, to, config, start).watch(lost)
        finally:
            lease.release()
        if not lost.is_set():
            return
        lost.clear()


@contextmanager
def watched(folder: Path, config: AlertsConfig) -> Iterator[None]:
    """Within it, and beyond it for as long as something is left to send, a process of its own watches this process's
    start of a run; none where the recipe has nobody to tell. At its end the last alerts are waited for a little.

    Args:
        folder: the run's, which has to be there.

    Raises:
        UserError: an address is not understood.
    """
    if not places(config.to):
        yield
        return
    process = _start_watcher(folder, config)
    try:
        yield
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(CLOSING_S)


def _start_watcher(folder: Path, config: AlertsConfig) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "finetune.runs", "watch", str(folder), "--pid", str(os.getpid())]
    command += ["--again-after-s", str(config.again_after_s), "--per-hour", str(config.per_hour)]
    command += [word for kind in config.mute for word in ("--mute", kind)]
    # It shall not end with what a launcher has started. Addresses are secrets, which arguments are not.
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    environment[ADDRESSES] = "\n".join(config.to)
    with (folder / "alerts.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
