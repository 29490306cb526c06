"""Processes and the ones that started them: a launcher's death stops its workers, a worker's death its loaders.

A signal often reaches a whole group of processes at once (Ctrl-C, SLURM, systemd), and what the trainer saves then it
still needs its loaders for. So these listen to the trainer alone.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What asks a run to stop."""
LAUNCHER_GONE = signal.SIGUSR2
"""What the kernel tells a worker when its launcher has died. As long as nothing handles it, it ends the process."""
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""Variables one of which every launcher sets: torchrun, accelerate (also for a single process), and those for which
ranks are given by hand or by MPI. A process that a shell has started has none of them and may outlive the shell."""


def follow_the_launcher() -> None:
    """Be told of the launcher's death, which leaves workers behind when it is killed or gets a signal that it does not
    handle. To be called early: what the launcher dies of before is not noticed."""
    if any(name in os.environ for name in LAUNCHED):
        follow(os.getppid(), LAUNCHER_GONE)


def follow(parent: int, number: signal.Signals) -> None:
    """Get a signal when the parent process dies, at once where it is dead already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes and threads that are started within it never get what asks a run to stop; this one gets it later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(parent: int, _number: int) -> None:
    """Make a loader process, started with signals held back, end with its parent, or when its parent alone asks."""
    follow(parent, signal.SIGKILL)
    threading.Thread(target=_end_when_asked, args=(parent,), daemon=True).start()


def _end_when_asked(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
