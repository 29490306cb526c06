"""The run's page beside the run: `runs serve` in a process of its own, for this machine alone."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune.checkpoint.exporter import MODEST, RANKS


class PageBeside:
    """Serves a run that goes on, at the lowest priority, and ends with this process. Nothing that goes wrong with it is
    raised: it is told by `poll`."""

    def __init__(self, run: Path, port: int) -> None:
        """Begin to serve a run whose status.json is there, on a port of 127.0.0.1."""
        order = ["serve", str(run), "--port", str(port)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has ended)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune.runs.beside", str(os.getpid()), *order],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # a signal for the run is not for it
                env={name: value for name, value in os.environ.items() if not RANKS.fullmatch(name)} | MODEST,
            )
        except OSError as error:
            self._failure = str(error)

    def poll(self) -> str | None:
        """Why it has ended, said once; None while it serves."""
        if self._process and (code := self._process.poll()) is not None:
            self._process = None
            self._failure = self._reason(code)
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Serve no more."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._said.close()

    def _reason(self, code: int) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"it ended with code {code}"
