"""What a watcher has read, told and not yet delivered, kept in alerts.json, so that no start tells anything twice."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.rules import Alert
from finetune.monitor.alerts.throttle import Memory, Said, Throttle
from finetune.monitor.files import replace_text

FILE_NAME = "alerts.json"
"""Of a run's folder."""


@dataclass
class Letter:
    """An alert on its way."""

    alert: Alert
    to: list[str]
    """Names of the places that have not taken it yet."""


@dataclass
class Outbox:
    """What is to be sent, and all that has to be known to send nothing twice."""

    path: Path
    config: AlertsConfig
    names: Sequence[str]
    """Of all places."""
    offset: int | None = None
    """So many bytes of events.jsonl have been read; None where none have ever been."""
    silent: list[Any] | None = None
    """Whose silence has been told: host, pid, and time of its last heartbeat."""
    throttle: Throttle = field(init=False)
    _saved: str = field(init=False, default="")
    letters: list[Letter] = field(default_factory=list)
    """What some place has not taken yet."""
    fresh: list[Letter] = field(default_factory=list)
    """Those of them that have not been given to couriers yet."""

    def __post_init__(self) -> None:
        self.throttle = Throttle(self.config.again_after_s, self.config.per_hour)
        # Of a damaged one nothing is known: better to tell things twice than never.
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self._load(json.loads(self.path.read_text(encoding="utf-8")))

    def add(self, alert: Alert, now: float) -> None:
        """Take in an alert, which is sent unless it is muted or held back.

        Args:
            now: in seconds since 1970.
        """
        passed = None if alert.kind in self.config.mute else self.throttle.take(alert, now)
        if passed:
            self._post(Letter(passed, list(self.names)))

    def sum_up(self, now: float) -> None:
        """Send what was held back in one alert, where there is room for it."""
        if summary := self.throttle.summary(now):
            self._post(Letter(summary, list(self.names)))

    def done(self, letter: Letter, name: str) -> None:
        """Note that nothing more is to be done for a place about an alert."""
        letter.to.remove(name)
        self.letters = [one for one in self.letters if one.to]

    def save(self) -> None:
        """Write the file if something is otherwise. What cannot be written now, as the disk is full, is written with a
        later call: an alert of it must not wait."""
        state = {
            "offset": self.offset,
            "silent": self.silent,
            **asdict(self.throttle.memory),
            "letters": [asdict(letter) for letter in self.letters],
        }
        text = json.dumps(state, ensure_ascii=False, indent=1)
        if text != self._saved:
            with suppress(OSError):
                replace_text(self.path, text)
                self._saved = text

    def _load(self, state: dict[str, Any]) -> None:
        self.offset, self.silent = state["offset"], state["silent"]
        self.throttle.memory = Memory(
            {key: Said(**said) for key, said in state["said"].items()},
            state["sent"],
            state["sent_severe"],
            state["held"],
        )
        for letter in state["letters"]:
            # Whoever watches with other places than the one before gives theirs what is left.
            known = [name for name in letter["to"] if name in self.names] or list(self.names)
            self._post(Letter(Alert(**letter["alert"]), known))

    def _post(self, letter: Letter) -> None:
        self.letters.append(letter)
        self.fresh.append(letter)
