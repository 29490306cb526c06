"""A process that writes a run's status and events as training would, and does what it reads from its standard input.

`python -m tests.monitor.alerts.pretend FOLDER HEARTBEAT_S ADDRESS`; a line of JSON is an event, `end` finishes the run.
"""

import json
import sys
from pathlib import Path

from finetune.health.pulse import FOLDER as PULSES
from finetune.health.pulse import Pulse
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.watcher import watched
from finetune.monitor.events import EVENTS, EventLog
from finetune.monitor.status import StatusFile


def main(folder: Path, heartbeat_s: float, address: str) -> None:
    """Be a run."""
    folder.mkdir(exist_ok=True)
    pulse = Pulse(folder / PULSES, 0)
    pulse.at(7, "backward")
    events = EventLog(folder / EVENTS)
    with watched(folder, AlertsConfig(to=[address])):
        status = StatusFile(folder / "status.json", heartbeat_s, step=7)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            events.write(**json.loads(line))
        events.write("finished")
        status.close("finished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
