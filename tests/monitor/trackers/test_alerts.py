"""What of events trackers are told."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.rules import Alert
from finetune.monitor.alerts.throttle import Throttle
from finetune.monitor.trackers.alerts import TrackerAlerts
from finetune.monitor.trackers.tracker import Level


class Told:
    """Takes the place of all trackers."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, Level]] = []

    def alert(self, title: str, text: str, level: Level) -> None:
        self.alerts.append((title, level))


def test_what_is_worth_an_alert_is_passed_on_unless_it_is_muted_or_repeats_itself() -> None:
    told = Told()
    alerts = TrackerAlerts(AlertsConfig(mute=["phase"]), told)  # type: ignore[arg-type]
    for event in (
        {"kind": "checkpoint", "step": 5},
        {"kind": "skipped", "step": 7, "reason": "loss is nan"},
        {"kind": "skipped", "step": 8, "reason": "loss is nan"},
        {"kind": "phase", "step": 9, "number": 2, "changed": True},
        {"kind": "failed", "reason": "broken"},
        {"kind": "finished"},
    ):
        alerts.take(event)
    assert told.alerts == [("not a number in step 7", "warn"), ("failed", "error"), ("finished", "info")]


def test_events_of_several_threads_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the heartbeat come beside those of the loop."""
    taking, take = Lock(), Throttle.take

    def alone(throttle: Throttle, alert: Alert, now: float) -> Alert | None:
        assert taking.acquire(blocking=False)
        time.sleep(0.01)
        taking.release()
        return take(throttle, alert, now)

    monkeypatch.setattr(Throttle, "take", alone)
    told = Told()
    alerts = TrackerAlerts(AlertsConfig(), told)  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(alerts.take, [{"kind": "phase", "step": i, "number": 2, "changed": True} for i in range(8)]))
    assert len(told.alerts) == 8
