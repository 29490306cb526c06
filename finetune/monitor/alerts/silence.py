"""Whether anything is still heard of a run, judged by a clock of our own: machines' clocks differ."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from finetune.health.pulse import FOLDER as PULSES
from finetune.health.pulse import Beat, read_pulses
from finetune.monitor.alerts.start import Start
from finetune.monitor.status import ENDED, MISSED_HEARTBEATS

SHARED_LATE_S = 60.0
"""What another machine has written is seen up to so much later on a shared file system."""


class Silence:
    """Follows the heartbeats of a run."""

    def __init__(self, told: list[Any] | None) -> None:
        """Begin to listen.

        Args:
            told: whose silence has been told already, as `self.told` was left.
        """
        self.told = told
        """Host, pid and time of the last heartbeat of the process whose silence has been told."""
        self._heard: list[Any] | None = None
        self.seconds = 0.0
        """For so long nothing has been heard."""

    def look(self, status: Mapping[str, Any], passed_s: float) -> Literal["no heartbeat", "heartbeat is back"] | None:
        """What there is to tell, if anything.

        Args:
            passed_s: since the last look, without times in which this process itself stood still.
        """
        heard = [status["host"], status["pid"], status["heartbeat"]]
        if heard != self._heard or status["state"] in ENDED:
            self._heard, self.seconds = heard, 0.0
            return self._hear(heard)
        self.seconds += passed_s
        late_s = 0.0 if status["host"] == socket.gethostname() else SHARED_LATE_S
        if self.told or self.seconds <= MISSED_HEARTBEATS * status["heartbeat_s"] + late_s:
            return None
        self.told = heard
        return "no heartbeat"

    def _hear(self, heard: list[Any]) -> Literal["heartbeat is back"] | None:
        if self.told in (None, heard):
            return None
        same, self.told = self.told[:2] == heard[:2], None
        return "heartbeat is back" if same else None  # another start says itself that the run goes on


def whereabouts(folder: Path, status: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run is, or was last: fields of an event.

    Args:
        folder: the run's.
    """
    beat = _first_beat(folder)
    place = {"step": beat.step + 1, "activity": beat.activity} if beat else {"step": status["step"], "activity": None}
    return {**place, "host": status["host"], "pid": status["pid"], "process": _process(status)}


def _process(status: Mapping[str, Any]) -> str:
    if status["host"] != socket.gethostname():
        return "it runs on another machine"
    return "its process is still there" if Start(status["pid"]).alive else "its process is gone"


def _first_beat(folder: Path) -> Beat | None:
    with suppress(OSError):  # a start clears them
        return next(iter(read_pulses(folder / PULSES)), None)
    return None
