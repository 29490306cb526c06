"""Which alerts are sent at once: what repeats itself is told now and then, and never more than so many an hour.

Pure but for what it remembers: the time is always given, so that what it decides follows from what it was asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from finetune.monitor.alerts.rules import Alert

HOUR_S = 3600.0


@dataclass
class Said:
    """When something was last told."""

    at: float
    """In seconds since 1970."""
    meanwhile: int = 0
    """How often it has come since."""


@dataclass
class Memory:
    """All that a throttle's decisions depend on beside its settings."""

    said: dict[str, Said] = field(default_factory=dict)
    """By the alert's key."""
    sent: list[float] = field(default_factory=list)
    """When alerts were sent, in the last hour."""
    sent_severe: list[float] = field(default_factory=list)
    """The same of severe ones."""
    held: dict[str, int] = field(default_factory=dict)
    """How many alerts of each key are held back."""


class Throttle:
    """Lets alerts through, or holds them back.

    An alert that repeats itself is dropped within `again_after_s`, and the next one says how often it came meanwhile.
    Of severe ones and of all others at most `per_hour` each pass in any hour, so that noise never holds back what is
    severe. What is held back is told in one sentence with the next alert that passes.
    """

    def __init__(self, again_after_s: float, per_hour: int, memory: Memory | None = None) -> None:
        """Go on from what was remembered, or begin anew."""
        self._again_after_s = again_after_s
        self._per_hour = per_hour
        self.memory = memory or Memory()

    def take(self, alert: Alert, now: float) -> Alert | None:
        """The alert as it is to be sent, or None.

        Args:
            now: in seconds since 1970.
        """
        said = self.memory.said.get(alert.key)
        if alert.repeats and said and 0 <= now - said.at < self._again_after_s:
            said.meanwhile += 1
            return None
        sent = self._recent(alert.severe, now)
        if len(sent) >= self._per_hour:
            self.memory.held[alert.key] = self.memory.held.get(alert.key, 0) + 1
            return None
        sent.append(now)
        self.memory.said[alert.key] = Said(now)
        again = f"It has come {said.meanwhile:,} more times since {clock(said.at)}." if said and said.meanwhile else ""
        return replace(alert, text=" ".join(filter(None, (alert.text, again, self._held()))))

    def summary(self, now: float) -> Alert | None:
        """What is held back, in one alert, once there is room for it."""
        count, sent = sum(self.memory.held.values()), self._recent(False, now)
        if not count or len(sent) >= self._per_hour:
            return None
        sent.append(now)
        return Alert("held back", "warning", f"{count:,} more alerts", self._held())

    def _recent(self, severe: bool, now: float) -> list[float]:
        """When alerts passed in the last hour; a list to append to."""
        sent = self.memory.sent_severe if severe else self.memory.sent
        sent[:] = within_an_hour(sent, now)
        return sent

    def _held(self) -> str:
        """What is held back, which counts as told then."""
        told = ", ".join(f"{count:,} × {key}" for key, count in self.memory.held.items())
        self.memory.held.clear()
        return f"Held back until now: {told}." if told else ""


def within_an_hour(times: Iterable[float], now: float) -> list[float]:
    """Those of some times that are less than an hour ago; a clock that was set back makes later ones past."""
    return [at for at in times if 0 <= now - at < HOUR_S]


def clock(at: float) -> str:
    """A time as it is told."""
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %H:%M UTC")
