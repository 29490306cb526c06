"""What of events trackers are told."""

from finetune.monitor.alerts.config import AlertsConfig
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
