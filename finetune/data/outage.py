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
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
)
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_random_exponential

from finetune.redact import redacted

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
ATTEMPTS = 8
"""Where somebody sits and waits for an answer."""
STALE_S = 10 * LONGEST_WAIT_S
"""A note that has not been renewed for so long was left behind by a process that died."""


class Lasting(OSError):
    """A fault that waiting does not mend."""


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
        """Let the threads of this process that wait by now end with the fault that they wait for."""
        self._given_up.set()
        self._given_up = threading.Event()

    def until_done(self, what: str, function: Callable[[], T]) -> T:
        """The result of `function`, called again after every OSError: at once after the first, then with growing,
        random pauses in between.

        Args:
            what: what is being read, for the note.
        """
        given_up = self._given_up
        try:
            return function()
        except OSError:
            if given_up.is_set():
                raise
        note, since = self._note_path(), time.time()

        def waiting(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if note and time.time() - since >= self._alert_after_s:
                _write_note(note, what, error, since)

        retry, stop = retry_if_exception_type(OSError), stop_when_event_set(given_up)
        try:
            return _retrying(retry, stop, given_up, before_sleep=waiting)(function)
        finally:
            if note:
                with suppress(OSError):
                    note.unlink()

    def for_a_while(self, function: Callable[[], T]) -> T:
        """The result of `function`, called again like that for at most a minute, half of one on average.

        Raises:
            OSError: the fault lasts, or waiting will not mend it: the file is missing or denied, or the server unfit.
        """
        given_up = self._given_up
        stop = stop_any(stop_after_attempt(ATTEMPTS), stop_when_event_set(given_up))
        return _retrying(retry_if_exception(_may_pass), stop, given_up)(function)

    def _note_path(self) -> Path | None:
        name = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.json"
        return self._notes / name if self._notes else None


def _retrying(
    retry: retry_base,
    stop: stop_base,
    given_up: threading.Event,
    before_sleep: Callable[[RetryCallState], None] | None = None,
) -> Retrying:
    return Retrying(
        retry=retry,
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=stop,
        sleep=sleep_using_event(given_up),
        before_sleep=before_sleep,
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError | Lasting)


def _write_note(path: Path, what: str, error: BaseException | None, since: float) -> None:
    temporary = path.with_suffix(".tmp")
    with suppress(OSError):  # a full disk is no reason to stop waiting
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps({"what": redacted(what), "reason": redacted(f"{type(error).__name__}: {error}"), "since": since})
        )
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
