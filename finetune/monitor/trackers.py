"""TensorBoard and wandb: extra eyes, which must never touch training."""

import json
import os
import uuid
from collections.abc import Callable
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal, Protocol, cast
from urllib.parse import urlsplit

import numpy as np
import wandb
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from finetune.monitor.config import MonitorConfig, WandbConfig
from finetune.monitor.events import EventLog

WandbMode = Literal["online", "offline", "disabled"]
# What these libraries raise when the disk, the network or their own service process fails.
TRACKER_FAILURES = (OSError, RuntimeError, ValueError, wandb.Error)


class Tracker(Protocol):
    """Where metrics and pictures can be sent."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send one step's numbers."""

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture."""

    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoardTracker:
    """Event files under RUN/tensorboard."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        # On resume, what was written beyond the checkpoint is struck out, so that no step stands twice.
        purge = resumed_step + 1 if resumed_step else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Write a picture."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        """Write it among the texts."""
        self._writer.add_text(title, text)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandbTracker:
    """A wandb run that keeps its id over resumes; without a key it is kept under RUN/wandb for `wandb sync`."""

    def __init__(self, folder: Path, name: str, config: WandbConfig, recipe: dict[str, Any]) -> None:
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            mode=_wandb_mode(config.mode),
            config=recipe,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
        )
        # An axis of our own: wandb drops values whose internal step goes backwards, as it does after a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send numbers."""
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture."""
        self._run.log({name: wandb.Image(image), "step": step})

    def alert(self, title: str, text: str) -> None:
        """Have wandb send it, as its user has set that up."""
        self._run.alert(title, text)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackers:
    """All trackers of a run; one that fails is switched off with an event, and training goes on."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._trackers: dict[str, Tracker] = {}

    def open(self, name: str, build: Callable[[], Tracker]) -> None:
        """Add a tracker."""
        try:
            self._trackers[name] = build()
        except TRACKER_FAILURES as error:
            self._events.write("tracker failed", tracker=name, reason=str(error))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send numbers to all."""
        self._each(lambda tracker: tracker.log(step, values))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture to all."""
        self._each(lambda tracker: tracker.image(step, name, image))

    def alert(self, title: str, text: str) -> None:
        """Tell all."""
        self._each(lambda tracker: tracker.alert(title, text))

    def close(self) -> None:
        """Close all."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except TRACKER_FAILURES as error:
                del self._trackers[name]
                self._events.write("tracker failed", tracker=name, reason=str(error))


def open_trackers(
    config: MonitorConfig, folder: Path, name: str, recipe: dict[str, Any], resumed_step: int, events: EventLog
) -> Trackers:
    """The trackers that the recipe asks for. `recipe` comes with its secrets blacked out."""
    trackers = Trackers(events)
    if config.tensorboard:
        trackers.open("tensorboard", lambda: TensorBoardTracker(folder, resumed_step))
    if config.wandb.mode != "disabled":
        trackers.open("wandb", lambda: WandbTracker(folder, name, config.wandb, recipe))
    return trackers


def _wandb_mode(mode: str) -> WandbMode:
    if mode != "auto":
        return cast(WandbMode, mode)
    return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Whether `wandb login` has left a key in netrc, or one is in the environment."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _run_id(folder: Path) -> str:
    """The wandb id of this run, made once."""
    path = folder / "wandb-run.json"
    if not path.exists():
        path.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}), encoding="utf-8")
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
