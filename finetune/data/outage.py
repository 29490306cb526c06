"""Faults of I/O: tried again until they pass, and told to whoever watches the run when they last.

Nothing is ever replaced on account of such a fault, or the ledger would depend on luck. A process that waits leaves a
note in a folder; the notes of all processes of a run together say whether it is paused, and why.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_when_event_set
from tenacity.wait import wait_random_exponential

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
STALE_S = 10 * LONGEST_WAIT_S
"""A note that has not been renewed for so long was left behind by a process that died."""


class Patience:
    """How the processes of a run stand faults of I/O."""

    def __init__(self, notes: Path | None = None, alert_after_s: float = 60.0) -> None:
        """Wait for faults to pass.

        Args:
            notes: folder for the notes of waiting processes; None leaves none.
            alert_after_s: how long a fault lasts before a note is left.
        """
        self._notes = notes
        self._alert_after_s = alert_after_s
        self._given_up = threading.Event()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_given_up": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({**state, "_given_up": threading.Event()})

    def give_up(self) -> None:
        """Let the threads of this process that wait end with the fault that they wait for."""
        self._given_up.set()

    def until_done(self, what: str, function: Callable[[], T]) -> T:
        """The result of `function`, called again after every OSError, with growing, random pauses in between.

        Args:
            what: what is being read, for the note.
        """
        note = self._note_path()

        def waiting(state: RetryCallState) -> None:
            since = time.time() - (state.seconds_since_start or 0.0)
            error = state.outcome.exception() if state.outcome else None
            if note and time.time() - since >= self._alert_after_s:
                _write_note(note, what, error, since)

        retrying = Retrying(
            retry=retry_if_exception_type(OSError),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            before_sleep=waiting,
            reraise=True,
        )
        try:
            return retrying(function)
        finally:
            if note:
                note.unlink(missing_ok=True)

    def _note_path(self) -> Path | None:
        name = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.json"
        return self._notes / name if self._notes else None


def _write_note(path: Path, what: str, error: BaseException | None, since: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"what": what, "reason": f"{type(error).__name__}: {error}", "since": since}))
    temporary.replace(path)


def read_notes(folder: Path) -> list[dict[str, object]]:
    """The notes of all processes that wait, oldest outage first; of dead processes there are none after a while."""
    found = []
    for path in folder.glob("*.json"):
        try:
            if time.time() - path.stat().st_mtime <= STALE_S:
                found.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # the wait is over
            continue
    return sorted(found, key=lambda note: float(note["since"]))
