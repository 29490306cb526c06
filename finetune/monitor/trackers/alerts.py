"""Alerts as trackers send them: wandb tells whoever its user has set that up for."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.rules import Level as AlertLevel
from finetune.monitor.alerts.rules import alert_of
from finetune.monitor.alerts.throttle import Throttle
from finetune.monitor.trackers.tracker import Level
from finetune.monitor.trackers.trackers import Trackers

LEVELS: Mapping[AlertLevel, Level] = {"info": "info", "success": "info", "warning": "warn", "failure": "error"}


class TrackerAlerts:
    """Passes on what events are worth telling, as the recipe mutes and throttles it."""

    def __init__(self, config: AlertsConfig, trackers: Trackers) -> None:
        self._muted = config.mute
        self._throttle = Throttle(config.again_after_s, config.per_hour)
        self._trackers = trackers
        self._taking = threading.Lock()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event. Any thread may call it."""
        alert = alert_of(event)
        if alert is None or alert.kind in self._muted:
            return
        with self._taking:
            passed = self._throttle.take(alert, time.time())
        if passed:
            self._trackers.alert(passed.title, passed.text, LEVELS[passed.level])
