"""One launch in a run's folder: a lock that its holder renews, on any file system that all nodes share.

A second start finds out by itself whether the holder lives. On the same machine a process that is gone, or whose number
another one has by now, gives the lock up at once. Anything else is watched: what is renewed is held, and what stays
silent for `LEASE_S` is stale. Times are this process's own, so that clocks may differ.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from finetune.errors import RankError, UserError
from finetune.lifecycle.starts import last_began
from finetune.ranks import Ranks, decided

LEASE_S, RENEWAL_S = 120.0, 5.0
"""NFS shows another node's changes up to a minute late."""
POLL_S = 0.5


class RunLock:
    """The lock of a run's folder, as the rank sees it that may hold it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """A lock that is not held yet.

        Args:
            say: tells the user what is waited for.
        """
        self._folder = folder
        self._say = say
        self._path = folder / "lock"
        self._lost: str | None = None
        self._lease = SoftFileLease(
            self._path,
            lease_duration=LEASE_S,
            heartbeat_interval=RENEWAL_S,
            on_compromise=self._on_loss,
            thread_local=False,
        )

    def take(self) -> None:
        """Take the lock, waiting for as long as it is unknown whether the one that holds it lives.

        Raises:
            UserError: it does, or the folder cannot be written.
        """
        first: tuple[str | None, int] | None = None
        while not self._taken():
            seen = self._seen()
            if seen is None:
                continue
            if first is None or first[0] != seen[0]:
                first = seen
                self._say(
                    f"{self._holder()} holds {self._folder}: waiting to see whether it lives, at most {LEASE_S:.0f} s"
                )
            elif first != seen:
                raise UserError(
                    f"{self._holder()} trains in {self._folder}: stop it first, or start another run with another "
                    "run.name"
                )
            time.sleep(POLL_S)
        if first is not None:
            self._say(f"its holder is gone: {self._folder} is free")

    def check(self) -> None:
        """Raise RankError where another start has taken the lock for stale, so that two never save in one folder."""
        if self._lost:
            raise RankError(
                f"this run no longer holds {self._path} ({self._lost}): see who trains there, and start again"
            )

    def release(self) -> None:
        """Let the next start in, where the lock is held."""
        self._lease.release()

    def _taken(self) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lease.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be written ({error}): make it writable, or give another run.folder"
            ) from error
        return True

    def _seen(self) -> tuple[str | None, int] | None:
        """Whose the lock is and when it was renewed; None where it has just gone."""
        owner = self._lease.owner
        try:
            return owner and owner.token, self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _holder(self) -> str:
        owner, began = self._lease.owner, last_began(self._folder)
        if owner is None:
            return "another start"
        since = f", since {began['time']}" if began and began["pid"] == owner.pid else ""
        # Behind the name there may be the process namespace, by which two containers of a machine differ.
        return f"process {owner.pid} on {owner.hostname.partition('?')[0]}{since}"

    def _on_loss(self, loss: LeaseCompromise) -> None:
        self._lost = loss.reason


@contextmanager
def locked(folder: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[RunLock]:
    """Within it rank 0 holds the lock of a run's folder, which is made where it is missing. All ranks enter.

    Raises:
        UserError: another start holds it; on all ranks.
    """
    lock = RunLock(folder, say)
    try:
        decided(ranks, lock.take)
        yield lock
    finally:
        lock.release()
