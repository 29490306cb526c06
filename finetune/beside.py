"""A command on runs in a process of its own beside a run: at the lowest priority, in one thread, without a GPU, and
ended when the run's process is."""

import os
import re
import subprocess
import sys
import tempfile

LAUNCH = re.compile(
    r"RANK|LOCAL_RANK|GROUP_.*|ROLE_.*|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_.*|TORCHELASTIC_.*|ACCELERATE_.*"
)
"""What a launcher tells its workers, of which such a process is none."""
MODEST = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Beside:
    """A process that runs `python -m finetune.runs …` for this one. To be made in the main thread, whose end it does
    not outlive."""

    def __init__(self, *command: str) -> None:
        """Start it. Raises OSError where that cannot be."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has ended)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune.runs.beside", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal for the run is not for it
                env={name: value for name, value in os.environ.items() if not LAUNCH.fullmatch(name)} | MODEST,
            )
        except OSError:
            self._said.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has ended; does not wait."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, for so long at most; whether it has ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> str | None:
        """Once it has ended: why it has failed, in a line; None where it has not."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        self._said.close()
        if code == 0:
            return None
        if code < 0:
            return f"it was ended by signal {-code}"
        return lines[-1].removeprefix("error: ") if lines else f"it ended with code {code}"
