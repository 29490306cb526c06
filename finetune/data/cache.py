"""A bounded local cache of remote files, shared by the processes and runs of a machine.

A file is fetched by whoever needs it first, in pieces that are kept: what an interrupted fetch has got is not fetched
again. It takes its final name only when its size and SHA-256 are those of the index. Names are hashes, so nothing that
a server says becomes a path.

A part is its own lock (`flock`): who writes it holds it, and what a dead process has left can be told from it.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from finetune.data.index import Shard, file_sha256
from finetune.data.outage import Patience
from finetune.data.remote import Mismatch, Remote
from finetune.errors import UserError

PIECE_BYTES = 16 * 2**20
FULL = {errno.ENOSPC, errno.EDQUOT}


class Cached(NamedTuple):
    """A file in the cache."""

    used: float
    """Seconds since 1970; of a part, when it was last written."""
    size: int
    """Bytes; of a part, those that it will have."""
    path: Path


class Cache:
    """Files by their URL and hash."""

    def __init__(self, folder: Path, limit_bytes: int, remote: Remote, patience: Patience) -> None:
        self._folder = folder.expanduser() / "shards"
        self._limit_bytes = limit_bytes
        self._remote = remote
        self._patience = patience

    def check(self) -> None:
        """Raise UserError where nothing can be kept in the folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                pass
        except OSError as error:
            raise UserError(f"data.cache.folder cannot be written ({error}): give a local folder that can") from error

    def holds(self, url: str, shard: Shard) -> Path | None:
        """Where the file lies, if it is here and whole; it then counts as used."""
        path = self._path(url, shard)
        try:
            os.utime(path)
            return path if path.stat().st_size == shard.size else None
        except FileNotFoundError:
            return None

    def fetch(self, url: str, shard: Shard) -> Path:
        """Where the file lies, after fetching it if need be; waits out faults.

        Raises:
            Mismatch: it is not what was indexed, also when fetched once more from the start.
        """
        return self.holds(url, shard) or self._patience.until_done(url, lambda: self._fetched(url, shard))

    def _fetched(self, url: str, shard: Shard) -> Path:
        path = self._path(url, shard)
        part = path.with_name(f"{path.stem}-{shard.size}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with part.open("ab", buffering=0) as file, _locked(file):
                if not lies_at(part, file):  # who held the lock has finished it, or dropped it
                    continue
                if self.holds(url, shard):
                    part.unlink()
                else:
                    self._complete(url, shard, part, file.fileno())
                    part.replace(path)
                return path

    def _complete(self, url: str, shard: Shard, part: Path, descriptor: int) -> None:
        """Fetch what is missing of a part. Raises Mismatch where it then is not the file that was indexed."""
        self._make_room()
        for _ in range(2):  # what is there may be of a file that has changed since
            while os.fstat(descriptor).st_size < shard.size:
                self._patience.until_done(url, lambda: self._append_piece(url, shard.size, descriptor))
            os.fsync(descriptor)
            if os.fstat(descriptor).st_size == shard.size and file_sha256(part) == shard.sha256:
                return
            os.ftruncate(descriptor, 0)
        part.unlink()
        raise Mismatch(url)

    def _append_piece(self, url: str, file_size: int, descriptor: int) -> None:
        """Raises OSError; what has been written by then stays, and where the disk is full, something has made room."""
        offset = os.fstat(descriptor).st_size
        data = memoryview(self._remote.read_indexed(url, offset, min(PIECE_BYTES, file_size - offset), file_size))
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno in FULL:
                self._make_room(at_least=1)
            error.filename = str(self._folder)
            raise

    def _make_room(self, at_least: int = 0) -> None:
        """Remove what was used longest ago, until the limit holds and so many bytes are free that were not. What a
        process is writing stays, and counts as what it will be; readers keep what they have open."""
        with self._alone():
            kept = sorted(self._files())
            excess = max(sum(file.size for file in kept) - self._limit_bytes, at_least)
            for file in kept:
                if excess <= 0:
                    return
                if _removed(file.path):
                    excess -= file.size

    def _files(self) -> Iterator[Cached]:
        for path in chain(self._folder.glob("*/*.tar"), self._folder.glob("*/*-*.part")):
            with suppress(FileNotFoundError):  # finished or removed since
                stat = path.stat()
                size = int(path.stem.rpartition("-")[2]) if path.suffix == ".part" else stat.st_size
                yield Cached(stat.st_mtime, size, path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "lock").open("ab") as file, _locked(file):
            yield

    def _path(self, url: str, shard: Shard) -> Path:
        name = hashlib.sha256(f"{url}\n{shard.size}\n{shard.sha256}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.tar"


@contextmanager
def _locked(file: BinaryIO, flags: int = 0) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX | flags)
    try:
        yield
    finally:
        # Closing is not enough: a process that was forked meanwhile has it open too.
        fcntl.flock(file, fcntl.LOCK_UN)


def lies_at(path: Path, file: BinaryIO) -> bool:
    """Whether an opened file is what lies at a path by now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a file, unless a process is writing it. Whether it is gone."""
    try:
        with path.open("rb") as file, _locked(file, fcntl.LOCK_NB):
            if lies_at(path, file):
                path.unlink()
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
