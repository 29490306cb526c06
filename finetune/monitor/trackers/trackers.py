"""All trackers of a run."""

import time
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.monitor.config import MonitorConfig
from finetune.monitor.events import EventLog
from finetune.monitor.trackers.guarded import Call, Guarded
from finetune.monitor.trackers.tensorboard import TensorBoardTracker
from finetune.monitor.trackers.tracker import Ended, Level, Tracker
from finetune.monitor.trackers.wandb_run import WandbTracker

CLOSE_S = 30.0
"""How long the end of a run waits for its trackers."""


class Trackers:
    """Hands everything on to all trackers. No call waits for one, but `close`."""

    def __init__(self, trackers: dict[str, Tracker], events: EventLog) -> None:
        self._guarded = [Guarded(name, tracker, events) for name, tracker in trackers.items()]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send numbers."""
        self._each(lambda tracker: tracker.log(step, values))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture, which must not be changed any more."""
        self._each(lambda tracker: tracker.image(step, name, image))

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tell whoever watches."""
        self._each(lambda tracker: tracker.alert(title, text, level))

    def rolled_back(self, step: int) -> None:
        """Note that the weights are those after `step` steps again."""
        self._each(lambda tracker: tracker.rolled_back(step), needed=True)

    def close(self, ended: Ended) -> None:
        """Have all trackers send what is left, and leave behind those that don't in time."""
        deadline = time.monotonic() + CLOSE_S
        self._each(lambda tracker: tracker.close(ended), needed=True)
        for guarded in self._guarded:
            guarded.finish()
        for guarded in self._guarded:
            guarded.leave(deadline)

    def _each(self, call: Call, *, needed: bool = False) -> None:
        for guarded in self._guarded:
            guarded.send(call, needed=needed)


def open_trackers(
    config: MonitorConfig,
    folder: Path,
    name: str,
    recipe: dict[str, Any],
    *,
    done_steps: int,
    shown_step: int | None,
    events: EventLog,
) -> Trackers:
    """The trackers that the recipe asks for.

    Args:
        recipe: comes with its secrets blacked out.
        done_steps: steps of the checkpoint that is resumed from; 0 at the start.
        shown_step: steps beyond these up to this one were sent by the last start, and are trained again; None where
            there are none.
    """
    trackers: dict[str, Tracker] = {}
    if config.tensorboard:
        trackers["tensorboard"] = TensorBoardTracker(folder, done_steps)
    if config.wandb.mode != "disabled":
        # The last step may be validated yet, unless training went on beyond it.
        sent_step = done_steps - 1 if shown_step is None else shown_step
        trackers["wandb"] = WandbTracker(folder, name, config.wandb, recipe, sent_step, events)
    return Trackers(trackers, events)
