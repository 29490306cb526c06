"""Exports beside a run that goes on: `runs export` in a process of its own, one at a time."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune.checkpoint.export_config import DTYPES, ExportConfig, export_name

RANKS = re.compile(
    r"RANK|LOCAL_RANK|GROUP_.*|ROLE_.*|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_.*|TORCHELASTIC_.*|ACCELERATE_.*"
)
"""What a launcher tells its workers, of which an export is none."""
MODEST = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


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
    process: subprocess.Popen[bytes]
    said: BinaryIO
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
        command = [sys.executable, "-m", "finetune.runs.beside", str(os.getpid()), "export", *order]
        environment = {name: value for name, value in os.environ.items() if not RANKS.fullmatch(name)}
        said, began = tempfile.TemporaryFile(), time.monotonic()  # noqa: SIM115 (closed when the export has ended)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal for the run is not for it
                env=environment | MODEST,
            )
        except OSError as error:
            said.close()
            self._ended.append(Exported(step, path, 0.0, str(error)))
            return False
        self._running = _Running(process, said, step, path, began)
        return True

    def poll(self) -> list[Exported]:
        """The exports that have ended since the last call; does not wait."""
        self._take_ended()
        ended, self._ended = self._ended, []
        return ended

    def wait(self, timeout_s: float) -> bool:
        """Wait for the export that is going on, for so long at most; whether none is going on any more."""
        if self._running:
            try:
                self._running.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
        return True

    def close(self) -> None:
        """Stop the export that is going on."""
        if self._running:
            self._running.process.kill()
            self._running.process.wait()
            self._take_ended()

    def _take_ended(self) -> None:
        if self._running is None or (code := self._running.process.poll()) is None:
            return
        running, self._running = self._running, None
        error = None if code == 0 else _reason(running.said, code)
        running.said.close()
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


def _reason(said: BinaryIO, code: int) -> str:
    """Why an export has failed, in a line."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    if code < 0:
        return f"it was ended by signal {-code}"
    return lines[-1].removeprefix("error: ") if lines else f"it ended with code {code}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
