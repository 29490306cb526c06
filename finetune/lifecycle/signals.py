"""How a run is asked to stop: by signals, which its loop polls, or by the death of its launcher."""

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from finetune.parent import LAUNCHER_GONE, STOPPING

HANDLED = (*STOPPING, LAUNCHER_GONE)
ECHO_S = 3.0
"""Seconds after the first signal within which others count as the same one: launchers forward what has reached the
whole group of processes as well."""


class StopSignals:
    """Within it the first signal that asks for it only sets `requested`, and a later one ends the process at once.

    Enter it in the main thread. Signals are taken by a thread of their own, so that the second one works while the main
    thread waits for other ranks. After a request it stays in force till the process ends, so that an echo does no harm.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        """Prepare for signals.

        Args:
            grace_s: how long the process may go on once its launcher is dead; None is what a launcher that is told to
                gives its workers when it stops them, TORCH_ELASTIC_SHUTDOWN_TIMEOUT, or else 120.
        """
        self.requested = False
        """Whether this process was asked to stop."""
        self.reason = ""
        """By what."""
        self._grace_s = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")) if grace_s is None else grace_s
        self._since = 0.0

    def __enter__(self) -> "StopSignals":
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        # The handlers do nothing: the interpreter writes each signal's number to the socket before it calls them, and
        # it calls them only once the main thread is out of whatever it waits for.
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._handlers: dict[int, Any] = {number: signal.signal(number, _nothing) for number in HANDLED}
        if self._handlers[signal.SIGHUP] is signal.SIG_IGN:  # by nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.requested:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._theirs.close()

    def _listen(self) -> None:
        while numbers := self._ours.recv(64):
            for number in numbers:
                if number in HANDLED:
                    self._take(signal.Signals(number))
        self._ours.close()

    def _take(self, number: signal.Signals) -> None:
        if not self.requested:
            self._since = time.monotonic()
            self.reason = "the launcher's death" if number == LAUNCHER_GONE else number.name
            self.requested = True
        elif number != LAUNCHER_GONE and time.monotonic() - self._since >= ECHO_S:
            os._exit(128 + number)
        if number == LAUNCHER_GONE:  # nobody is left who would end this process if it hangs
            timer = threading.Timer(self._grace_s, os._exit, [128 + number])
            timer.daemon = True
            timer.start()


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
