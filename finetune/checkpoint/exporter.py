"""Exports beside a run that goes on: `runs export` in a process of its own, one at a time."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from finetune.beside import Beside
from finetune.checkpoint.export_config import DTYPES, ExportConfig, export_name


@dataclass(frozen=True)
class Exported:
    """An export that has ended."""

    step: int
    path: Path
    """Where it is, or would have been."""
    seconds: float
    error: str | None
    """Why there is none."""


@dataclass
class _Running:
    process: Beside
    step: int
    path: Path
    began: float


class BackgroundExport:
    """The exports of a run, for its first rank. Nothing that goes wrong with them is raised: it is told by `poll`.

    An export runs at the lowest priority in one thread and without a GPU, and dies with this process. Its checkpoint
    has to stay until it has ended.
    """

    def __init__(self, run: Path, config: ExportConfig) -> None:
        """Make ready; what exports of a run that was killed have left half-written is removed."""
        self._run = run
        self._config = config
        self._running: _Running | None = None
        self._ended: list[Exported] = []
        for left in self._there(hidden=True):
            _remove(left)

    def due(self, step: int) -> bool:
        """Whether the checkpoint of a step is to be exported."""
        return bool(self._config.every_steps) and step % self._config.every_steps == 0

    @property
    def step(self) -> int | None:
        """The step whose checkpoint is being exported, which has to stay; None while there is none."""
        return self._running.step if self._running else None

    def start(self, step: int) -> bool:
        """Begin to export the checkpoint of a step, unless the export before it is still going on; whether it began."""
        self._take_ended()
        if self._running:
            return False
        form, dtype = self._config.format, self._config.dtype or DTYPES[self._config.format]
        path = self._run / "export" / export_name(self._run.name, step, form)
        order = [str(self._run), str(path), "--step", str(step), "--format", form, "--dtype", dtype]
        began = time.monotonic()
        try:
            self._running = _Running(Beside("export", *order), step, path, began)
        except OSError as error:
            self._ended.append(Exported(step, path, 0.0, str(error)))
            return False
        return True

    def poll(self) -> list[Exported]:
        """The exports that have ended since the last call; does not wait."""
        self._take_ended()
        ended, self._ended = self._ended, []
        return ended

    def wait(self, timeout_s: float) -> bool:
        """Wait for the export that is going on, for so long at most; whether none is going on any more."""
        return self._running is None or self._running.process.wait(timeout_s)

    def close(self) -> None:
        """Stop the export that is going on."""
        if self._running:
            self._running.process.kill()
            self._take_ended()

    def _take_ended(self) -> None:
        if self._running is None or not self._running.process.ended:
            return
        running, self._running = self._running, None
        error = running.process.close()
        seconds = time.monotonic() - running.began
        self._ended.append(Exported(running.step, running.path, seconds, error))
        if error:
            _remove(running.path.with_name(f".{running.path.name}.tmp"))
        elif self._config.keep:
            for path in self._there(hidden=False)[: -self._config.keep]:
                _remove(path)
                _remove(path.with_suffix(".yaml"))

    def _there(self, *, hidden: bool) -> list[Path]:
        """Exports of the run in this format, oldest first, or what has been left of them half-written."""
        step = r"\d{8,}"
        name = re.escape(export_name(self._run.name, 0, self._config.format)).replace("00000000", step)
        pattern = re.compile(rf"\.{name}\.(tmp|old)" if hidden else name)
        paths = [path for path in (self._run / "export").glob("*") if pattern.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (len(path.name), path.name))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
