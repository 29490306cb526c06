"""A process that sends to the real trackers and nothing else: `python -m tests.tracked FOLDER JSON`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from finetune.monitor.config import MonitorConfig, WandbConfig
from finetune.monitor.events import EventLog
from finetune.monitor.trackers import Trackers, open_trackers, trackers, wandb_run

DEADLINE_S = 120


def open_all(
    folder: Path, *, done: int = 0, shown: int | None = None, mode: str = "disabled", tensorboard: bool = False
) -> Trackers:
    """The trackers of a run in a folder."""
    config = MonitorConfig(tensorboard=tensorboard, wandb=WandbConfig(mode=mode))
    events = EventLog(folder / "events.jsonl")
    recipe = {"optim": {"lr": 1.0}}
    return open_trackers(config, folder, "test", recipe, done_steps=done, shown_step=shown, events=events)


def send(to: Trackers, steps: range) -> None:
    """A loss for every step, and a picture with the last."""
    for step in steps:
        to.log(step, {"loss": loss(step)})
    to.image(steps[-1], "samples", Image.new("RGB", (8, 8)))


def loss(step: int) -> float:
    """A falling curve, exact in single precision."""
    return 1.0 - step / 1024


def start(folder: Path, environment: Mapping[str, str], *arguments: str, **wishes: Any) -> "subprocess.Popen[bytes]":
    """Start this module as a process.

    Args:
        arguments: on its command line, where it does not look at them.
        wishes: `main`'s.
    """
    command = [sys.executable, "-m", "tests.tracked", str(folder), json.dumps(wishes), *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment})


def main(
    folder: Path, *, until: int, end: str, settle_s: float = 0.0, close_s: float = trackers.CLOSE_S, **opened: Any
) -> None:
    """Send steps up to `until`, then end well, by SIGKILL, or with wandb's own process stopped."""
    trackers.CLOSE_S = close_s
    to = open_all(folder, **opened)
    send(to, range(opened.get("done", 0) + 1, until + 1))
    while any(guarded._calls.qsize() for guarded in to._guarded):  # until all has been handed on
        time.sleep(0.01)
    time.sleep(settle_s)
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "stopped":
        for child in psutil.Process().children():
            if child.name() == wandb_run.SERVICE:
                child.send_signal(signal.SIGSTOP)
    to.close("finished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
