"""Delivers alerts to one place from a thread of its own, again and again until it takes them."""

import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import NamedTuple

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_exponential_jitter,
)

from finetune.monitor.alerts.outbox import Letter
from finetune.monitor.alerts.places import TIMEOUT_S, NotDelivered, Place, Refused

FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 300.0
GIVE_UP_AFTER_S = 24 * 3600.0
"""Longer than a network is usually away."""


class Outcome(NamedTuple):
    """An alert that a place has taken, or never will."""

    letter: Letter
    name: str


class Courier:
    """A thread that delivers in order, and tells what has come of it. A place that is away holds up no other."""

    def __init__(self, place: Place, run: str, outcomes: SimpleQueue[Outcome]) -> None:
        """Begin to wait for alerts.

        Args:
            run: name of the run.
            outcomes: where it is told what is done with.
        """
        self._place = place
        self._run = run
        self._outcomes = outcomes
        self._letters: SimpleQueue[Letter | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name=place.name, daemon=True)
        self._thread.start()

    def deliver(self, letter: Letter) -> None:
        """Deliver an alert after those before it."""
        self._letters.put(letter)

    def close(self) -> None:
        """Finish the attempt that is under way, and give up the rest, which another watcher will deliver."""
        self._closing.set()
        self._letters.put(None)
        self._thread.join(2 * TIMEOUT_S)

    def _deliver_all(self) -> None:
        while (letter := self._letters.get()) and not self._closing.is_set():
            try:
                self._attempts()(self._place.send, letter.alert, self._run)
            except NotDelivered as error:
                if self._closing.is_set():
                    return
                self._say(f"not delivered: {letter.alert.title} ({error}); given up")
            self._outcomes.put(Outcome(letter, self._place.name))

    def _attempts(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(NotDelivered) & retry_if_not_exception_type(Refused),
            wait=wait_exponential_jitter(initial=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=stop_any(stop_after_delay(GIVE_UP_AFTER_S), stop_when_event_set(self._closing)),
            sleep=sleep_using_event(self._closing),
            before_sleep=self._on_failure,
            reraise=True,
        )

    def _on_failure(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            error = state.outcome.exception() if state.outcome else None
            self._say(f"not delivered: {state.args[0].title} ({error}); it is tried again")

    def _say(self, text: str) -> None:
        with suppress(OSError):  # a full disk, where alerts.log lies
            time = datetime.now(UTC).isoformat(timespec="seconds")
            print(f"{time}  {self._place.name}  {text}", file=sys.stderr, flush=True)
