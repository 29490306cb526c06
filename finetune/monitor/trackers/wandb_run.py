"""Runs at Weights & Biases, or under RUN/wandb for `wandb sync`."""

import json
import os
import uuid
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import psutil
import wandb
from PIL import Image

from finetune.monitor.config import WandbConfig
from finetune.monitor.events import EventLog
from finetune.monitor.files import replace_text
from finetune.monitor.trackers.tracker import Ended, Level
from finetune.redact import redacted

Mode = Literal["online", "offline"]

SERVICE = "wandb-core"
"""The process by which wandb writes and sends."""
INIT_S = 60.0
"""How long a server may take to answer before the run goes on offline."""
FINISH_S = 20.0
"""How long the end of a run waits for what is not yet sent; the rest stays under RUN/wandb."""
FLUSH_S = 1.0
"""What a kill may cost of an offline run, in seconds."""


class RunIds:
    """wandb-run.json: the group of this run, and the wandb runs in it: one, and another after every rollback."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        if path.exists():
            self._plain = json.loads(path.read_text(encoding="utf-8"))
        else:
            self._plain = {"group": f"{name}-{uuid.uuid4().hex[:8]}", "name": name, "runs": []}
            self.add(0)

    def add(self, after_step: int) -> None:
        """Another run, for the steps beyond `after_step`."""
        self._plain["runs"].append({"id": uuid.uuid4().hex[:12], "after_step": after_step})
        replace_text(self._path, json.dumps(self._plain, indent=1))

    @property
    def newest(self) -> dict[str, Any]:
        """Id, name and group of the run that goes on, as wandb wants them."""
        runs = self._plain["runs"]
        name = self._plain["name"] if len(runs) == 1 else f"{self._plain['name']}-{len(runs)}"
        return {"id": runs[-1]["id"], "name": name, "group": self._plain["group"]}


class WandbTracker:
    """A wandb run that keeps its id over resumes, and has a successor in its group after a rollback.

    Offline, every start leaves a folder of its own with the same id; `wandb sync` joins those in the order of their
    starts.
    """

    def __init__(
        self, folder: Path, name: str, config: WandbConfig, recipe: dict[str, Any], sent_step: int, events: EventLog
    ) -> None:
        """A run that is begun with `open`.

        Args:
            recipe: the resolved recipe with its secrets blacked out.
            sent_step: steps up to this one were sent by an earlier start.
        """
        self._folder = folder
        self._name = name
        self._config = config
        self._recipe = recipe
        self._sent_step = sent_step
        self._events = events
        self._mode: Mode = wandb_mode(config.mode)

    def open(self) -> None:
        """Begin the newest run or go on with it; offline where the server cannot be reached."""
        self._ids = RunIds(self._folder / "wandb-run.json", self._name)
        self._begin()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send numbers."""
        self._send(step, values)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture."""
        self._send(step, {name: wandb.Image(image)})

    def alert(self, title: str, text: str, level: Level) -> None:
        """Have wandb send it, as its user has set that up."""
        self._run.alert(title, text, level=level.upper())

    def rolled_back(self, step: int) -> None:
        """End this run, since wandb keeps what it has, and begin another in the same group."""
        self._ids.add(step)  # first, so that a kill while the other one ends leaves nothing to be sent to it again
        self._run.finish()
        self._sent_step = -1
        self._begin()

    def close(self, ended: Ended) -> None:
        """End the run, and wandb's own process with it."""
        if ended == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(ended != "finished"))
        wandb.teardown()  # or it would be waited for when the interpreter exits

    def abandon(self) -> None:
        """Kill wandb's own process, which is waited for when the interpreter exits."""
        for child in psutil.Process().children():
            if child.name() == SERVICE:
                child.kill()

    def _begin(self) -> None:
        try:
            self._run = self._start()
        except wandb.errors.CommError as error:
            if self._mode == "offline":
                raise
            self._events.write("tracker offline", tracker="wandb", reason=redacted(str(error)))
            wandb.teardown()  # which else has the id in use
            self._mode = "offline"
            self._run = self._start()
        if self._mode == "online":  # what was not sent yet when an earlier start was killed
            self._sent_step = min(self._sent_step, int(self._run.summary.get("step", -1)))
        # An axis of our own: wandb's internal step only counts what was sent.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _start(self) -> Any:
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            **self._ids.newest,
            resume="allow",
            dir=str(self._folder),
            mode=self._mode,
            config=self._recipe,
            settings=wandb.Settings(
                silent=True,
                console="off",
                # What wandb would tell of the machine includes the command line, which may hold secrets.
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_stats=not self._config.system,
                init_timeout=INIT_S,
                finish_timeout=FINISH_S,
                x_transaction_log_flush_interval=FLUSH_S,
            ),
        )

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step > self._sent_step:
            self._run.log({**values, "step": step})


def wandb_mode(mode: str) -> Mode:
    """online or offline for what the recipe says, which may be auto."""
    if mode != "auto":
        return cast(Mode, mode)
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
