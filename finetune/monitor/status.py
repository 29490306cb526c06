"""status.json: how the run is, rewritten every few seconds, and how to judge it from outside."""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.monitor.files import replace_text

MISSED_HEARTBEATS = 12
"""A run that says it is running and has been silent for this many heartbeats is stale."""

ALIVE = ("starting", "running", "paused")
ENDED = ("finished", "preempted", "stopped", "failed")
"""States; a run in one of the first that has fallen silent is stale."""
HEALTHS = ("healthy", "paused", "stale", *ENDED)


class StatusFile:
    """Keeps status.json fresh from a thread of its own, so a long step does not look like a death."""

    def __init__(
        self, path: Path, heartbeat_s: float, outage: Callable[[], dict[str, Any]] = dict, **fields: Any
    ) -> None:
        """Write the file and begin to keep it fresh.

        Args:
            outage: asked with every heartbeat of a running run for fields that stand over the others.
        """
        self._path = path
        self._heartbeat_s = heartbeat_s
        self._outage = outage
        self._fields: dict[str, Any] = {
            "state": "starting",
            "started": time.time(),
            "heartbeat_s": heartbeat_s,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            **fields,
        }
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="status", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Change fields; they are written with the next heartbeat."""
        with self._lock:
            self._fields.update(fields)

    def close(self, state: str) -> None:
        """Stop, and write the final state (finished, preempted, stopped or failed). Raises OSError where that cannot be
        written."""
        self.update(state=state)
        self._stop.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            with suppress(OSError):  # of a disk that is full or away for a while
                self._write()

    def _write(self) -> None:
        over = self._outage() if self._fields["state"] == "running" else {}
        with self._lock:
            text = json.dumps({**self._fields, **over, "heartbeat": time.time()}, indent=1)
        replace_text(self._path, text)


def read_status(folder: Path) -> dict[str, Any]:
    """The status of the run in a folder.

    Raises:
        UserError: there is no run, or its status.json is none.
        OSError: it cannot be read now.
    """
    path = folder / "status.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run's folder (it has no status.json): give runs/NAME")
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
        health(status, time.time())
        if not math.isfinite(status["heartbeat"] + status["heartbeat_s"]):
            raise ValueError("heartbeat")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not what a run has written: start the run again, which writes it anew") from error
    return status


def health(status: dict[str, Any], now: float) -> str:
    """finished, preempted, stopped or failed as the run said; else healthy, paused while it waits for data, or stale
    where it has fallen silent."""
    state = status["state"]
    if state in ENDED:
        return str(state)
    if state not in ALIVE:
        raise ValueError(f"{state!r} is no state of a run")
    if now - status["heartbeat"] > MISSED_HEARTBEATS * status["heartbeat_s"]:
        return "stale"
    return "paused" if state == "paused" else "healthy"
