"""A tracker behind a queue, in a thread of its own: it may raise, hang or be slow, and its caller never notices."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from finetune.monitor.events import EventLog
from finetune.monitor.trackers.tracker import Tracker
from finetune.redact import redacted

Call = Callable[[Tracker], None]

WAITING = 2048
"""So many calls may wait for a tracker; what comes after them is dropped until it catches up."""


class Guarded:
    """One tracker in a daemon thread. What it raises switches it off with an event."""

    def __init__(self, name: str, tracker: Tracker, events: EventLog) -> None:
        self._name = name
        self._tracker = tracker
        self._events = events
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._dropped = 0
        self._failed = self._left = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def send(self, call: Call, *, needed: bool = False) -> None:
        """Have the tracker do something, soon; nothing where it is too far behind, unless what follows needs it."""
        if needed or self._calls.qsize() < WAITING:
            self._calls.put(call)
            return
        if not self._dropped:
            self._tell("tracker behind", waiting=WAITING)
        self._dropped += 1

    def finish(self) -> None:
        """Have the thread end after what it has been sent."""
        self._calls.put(None)

    def leave(self, deadline: float) -> None:
        """Wait for the thread until a time of the monotonic clock, and go without it if it has not ended."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._left = self._thread.is_alive()
        if self._left or self._dropped:
            self._tell("tracker incomplete", lost=self._dropped + self._calls.qsize(), answers=not self._left)
        if self._left or self._failed:
            self._tracker.abandon()

    def _work(self) -> None:
        calls = iter(self._calls.get, None)
        try:
            self._tracker.open()
            for call in calls:
                call(self._tracker)
        except BaseException as error:  # noqa: BLE001  whatever foreign code raises is told, and ends here
            self._failed = True
            if not self._left:
                self._tell("tracker failed", reason=redacted(str(error)) or type(error).__name__)
        for _ in calls:  # what is still sent to a tracker that has failed
            pass

    def _tell(self, kind: str, **fields: Any) -> None:
        with suppress(OSError):  # a full disk, which may be why the tracker has failed, must not reach who sends
            self._events.write(kind, tracker=self._name, **fields)
