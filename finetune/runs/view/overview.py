"""A run as its folder shows it now, in one value."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune.checkpoint.names import MANIFEST, finished
from finetune.errors import UserError
from finetune.monitor.events import EVENTS
from finetune.monitor.status import ENDED, health, read_status
from finetune.redact import redacted
from finetune.runs.view.tail import Line, last_lines, mean, numbers
from finetune.runs.view.words import duration, plain

METRICS, INTERVALS, VALIDATION = "metrics.jsonl", "intervals.jsonl", "validation.jsonl"
RECENT_STEPS = 50
"""Over which the loss is averaged."""
RECENT_EVENTS = 40
PICTURE = re.compile(r"step-(\d+).*\.(?:png|jpe?g|webp)", re.ASCII | re.IGNORECASE)
"""A picture in samples/, with its step."""


class Saved(NamedTuple):
    """A checkpoint that is there."""

    name: str
    step: int
    time: float
    """When it was written, in seconds since 1970."""


@dataclass(frozen=True)
class Overview:
    """What the files say of a run. Every key of `status`, `values` and the lines may be missing: at the start, or where
    another version has written them."""

    folder: Path
    now: float
    """When it was read, in seconds since 1970."""
    health: str
    status: dict[str, Any]
    """status.json."""
    metrics: Line
    """The last step's line."""
    interval: Line
    """The last interval's line."""
    validation: Line
    """The last validation's line."""
    recent: Line
    """`loss` and `loss_by_decile`, averaged over RECENT_STEPS steps."""
    events: Sequence[Line]
    """The last ones, newest first."""
    checkpoints: Sequence[Saved]
    """Oldest first."""
    requests: int
    """Requests in control/ that the run has not taken yet."""

    @property
    def name(self) -> str:
        """The run's name."""
        return plain(str(self.status.get("name") or self.folder.resolve().name))

    @property
    def host(self) -> str:
        """The machine of its rank 0."""
        return plain(str(self.status.get("host", "unknown machine")))

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the run gave its last sign of life."""
        return max(0.0, self.now - float(self.status["heartbeat"]))

    @property
    def over(self) -> bool:
        """Whether it has ended, by itself or on request."""
        return self.health in ENDED

    @property
    def values(self) -> dict[str, Any]:
        """All figures by key, each from where it is freshest; what is null there is left out."""
        named = {
            "validation_loss": self.validation.get("loss"),
            "validation_step": self.validation.get("step"),
            "ema_distance": self.validation.get("ema_distance"),
            "loss_mean": self.recent.get("loss"),
            "loss_by_decile": self.recent.get("loss_by_decile"),
            "requests_waiting": self.requests or None,
        }
        if self.checkpoints:
            named["checkpoint_age_s"] = max(0.0, self.now - self.checkpoints[-1].time)
        skipped = {"skipped": self.status.get("skipped_steps")}
        found = {**skipped, **self.status, **self.interval, **self.metrics, "step": self.step, **named}
        if self.over:
            found["eta_s"] = None
        return {key: value for key, value in found.items() if value is not None}

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(max(numbers([self.metrics.get("step")]) or numbers([self.status.get("step")]), default=0))

    @property
    def total_steps(self) -> int | None:
        """Steps that it will have; None where that is not known."""
        return next(map(int, numbers([self.status.get("total_steps")])), None)

    @property
    def sentence(self) -> str:
        """How it is, in a sentence."""
        silent, does = duration(self.heartbeat_age_s), "starting" if self.status["state"] == "starting" else "training"
        said = {
            "healthy": f"{does}, last sign of life {silent} ago",
            "stale": f"no sign of life for {silent}",
            "paused": "it waits for data",
            "finished": "it has done all its steps",
            "preempted": "it was asked to stop and has saved",
            "stopped": "it was stopped by hand",
            "failed": "it has failed",
        }[self.health]
        outage, reason = self.status.get("outage"), self.status.get("reason")
        if self.health == "paused" and isinstance(outage, dict):
            said = f"it waits for {outage.get('what')}: {outage.get('reason')}"
        elif self.over and reason:
            said = f"{said}: {reason}" if self.health == "failed" else str(reason)
        return plain(redacted(said))


def overview(folder: Path) -> Overview:
    """A run as it is now, at the cost of a few small reads. Raises UserError where a folder holds no run that can be
    read."""
    now = time.time()
    try:
        status = read_status(folder)
        lines = last_lines(folder / METRICS, RECENT_STEPS)
        return Overview(
            folder,
            now,
            health(status, now),
            status,
            metrics=lines[-1] if lines else {},
            interval=_last(folder / INTERVALS),
            validation=_last(folder / VALIDATION),
            recent=_averaged(lines),
            events=last_lines(folder / EVENTS, RECENT_EVENTS)[::-1],
            checkpoints=list(_saved(folder / "checkpoints")),
            requests=len(list((folder / "control").glob("*.json"))),
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): look at the disk, or try again") from error


def pictures(folder: Path) -> dict[str, int]:
    """The pictures of samples that there are, by their names in samples/, each with its step; newest first."""
    found = {}
    with suppress(OSError), os.scandir(folder / "samples") as entries:
        for entry in entries:
            match = PICTURE.fullmatch(entry.name)
            if match and entry.name.isprintable() and entry.is_file(follow_symlinks=False):
                found[entry.name] = int(match[1])
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def runs_in(folder: Path) -> dict[str, Path]:
    """The runs in a folder by name: what has a status.json."""
    try:
        return {path.name: path for path in sorted(folder.iterdir()) if _is_run(path)}
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): give the folder of runs") from error


def overviews(folder: Path) -> dict[str, Overview | UserError]:
    """All runs of a folder by name, or why one cannot be read. Raises UserError where the folder cannot be read."""
    found: dict[str, Overview | UserError] = {}
    for name, run in runs_in(folder).items():
        try:
            if not name.isprintable():
                raise UserError("its folder's name cannot be shown: rename it")
            found[name] = overview(run)
        except UserError as error:
            found[plain(name)] = error
    return found


def _is_run(path: Path) -> bool:
    with suppress(OSError):  # somebody else's
        return (path / "status.json").exists()
    return False


def _last(path: Path) -> Line:
    lines = last_lines(path, 1)
    return lines[-1] if lines else {}


def _averaged(lines: Sequence[Line]) -> Line:
    """Means over steps, each over those that had a value."""
    rows = [row for line in lines if isinstance(row := line.get("loss_by_decile"), list)]
    deciles = [mean(column) for column in zip(*rows, strict=False)]
    return {"loss": mean(line.get("loss") for line in lines), "loss_by_decile": deciles or None}


def _saved(folder: Path) -> Iterator[Saved]:
    for path in finished(folder):
        with suppress(OSError):  # removed since, by the run
            yield Saved(path.name, int(path.name.rpartition("-")[2]), (path / MANIFEST).stat().st_mtime)
