"""The run's page beside the run: `runs serve`, for this machine alone."""

from pathlib import Path

from finetune.beside import Beside


class PageBeside:
    """Serves a run that goes on. Nothing that goes wrong with it is raised: it is told by `poll`."""

    def __init__(self, run: Path, port: int) -> None:
        """Begin to serve a run whose status.json is there, on a port of 127.0.0.1. To be called in the main thread."""
        self._process: Beside | None = None
        self._failure: str | None = None
        try:
            self._process = Beside("serve", str(run), "--port", str(port))
        except OSError as error:
            self._failure = str(error)

    def poll(self) -> str | None:
        """Why it has ended, said once; None while it serves."""
        if self._process and self._process.ended:
            self._failure = self._process.close() or "it has ended"
            self._process = None
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Serve no more."""
        if self._process:
            self._process.kill()
            self._process.close()
            self._process = None
