"""The process that a watcher belongs to."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from finetune.errors import UserError
from finetune.monitor.status import ENDED, read_status


class Start:
    """The process whose start of a run a watcher belongs to."""

    def __init__(self, pid: int) -> None:
        self._me = (socket.gethostname(), pid)
        self._process: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs; one that has ended and waits to be reaped does not."""
        with suppress(psutil.NoSuchProcess):
            return bool(self._process and self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        return False

    def over(self, folder: Path) -> bool:
        """Whether it has told its end in a run's folder, or has ended without a word."""
        status = None
        with suppress(OSError, UserError):
            status = read_status(folder)
        return not self.alive or (self.wrote(status) and status is not None and status["state"] in ENDED)

    def wrote(self, status: Mapping[str, Any] | None) -> bool:
        """Whether a status is this start's."""
        return status is not None and (status["host"], status["pid"]) == self._me
