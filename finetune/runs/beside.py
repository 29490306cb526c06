"""`python -m finetune.runs.beside PID …`: a command on runs beside a run, at the lowest priority, which ends when the
process PID that has started it does."""

import os
import signal
import sys

from finetune.entry import enter
from finetune.parent import follow
from finetune.runs.__main__ import app


def main() -> None:
    """Run the command."""
    follow(int(sys.argv.pop(1)), signal.SIGKILL)
    os.nice(19)
    enter(app)


if __name__ == "__main__":
    main()
