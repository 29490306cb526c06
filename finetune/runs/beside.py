"""`python -m finetune.runs.beside PID …`: a command on runs beside a run, at the lowest priority, which ends when the
process PID that has started it does."""

import ctypes
import os
import signal
import sys

from finetune.entry import enter
from finetune.runs.__main__ import app

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the command."""
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has died before
        sys.exit(1)
    os.nice(19)
    enter(app)


if __name__ == "__main__":
    main()
