"""A bounded local cache of remote files, shared by the processes and runs of a machine.

A file is fetched by whoever needs it first, under a lock, in pieces that are kept: what an interrupted fetch has got is
not fetched again. It takes its final name only when its size and SHA-256 are those of the index. Names are hashes, so
nothing that a server says becomes a path.
"""

import errno
import hashlib
import os
from pathlib import Path

from filelock import FileLock

from finetune.data.index import Shard, file_sha256
from finetune.data.outage import Patience
from finetune.data.remote import Remote

PIECE_BYTES = 16 * 2**20


class Mismatch(Exception):
    """A remote file is not the one that was indexed; the message is its URL."""


class Cache:
    """Files by their URL and hash."""

    def __init__(self, folder: Path, limit_bytes: int, remote: Remote, patience: Patience) -> None:
        self._folder = folder.expanduser() / "shards"
        self._limit_bytes = limit_bytes
        self._remote = remote
        self._patience = patience

    def holds(self, url: str, shard: Shard) -> Path | None:
        """Where the file lies, if it is here; it then counts as used."""
        path = self._path(url, shard)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def fetch(self, url: str, shard: Shard) -> Path:
        """Where the file lies, after fetching it if need be; waits out faults.

        Raises:
            Mismatch: it is not what was indexed, also when fetched once more from the start.
        """
        if path := self.holds(url, shard):
            return path
        path = self._path(url, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            # Another process may have fetched it while this one waited for the lock.
            if found := self.holds(url, shard):
                return found
            part = path.with_suffix(".part")
            if not (self._complete(url, shard, part) or self._complete(url, shard, part)):
                raise Mismatch(url)
            part.replace(path)
        return path

    def _complete(self, url: str, shard: Shard, part: Path) -> bool:
        """Fetch what is missing of a part. Whether it then is the file that was indexed; if not, it is removed."""
        done = part.stat().st_size if part.exists() else 0
        self._make_room(shard.size - done, keep=part)
        with part.open("ab") as file:
            while file.tell() < shard.size:
                offset = file.tell()
                size = min(PIECE_BYTES, shard.size - offset)
                data = self._patience.until_done(url, lambda o=offset, s=size: self._remote.read(url, o, s))  # type: ignore[misc]
                self._patience.until_done(str(part), lambda o=offset, d=data: self._write(part, file.fileno(), o, d))  # type: ignore[misc]
                file.seek(offset + size)
            os.fsync(file.fileno())
        intact = part.stat().st_size == shard.size and file_sha256(part) == shard.sha256
        if not intact:
            part.unlink()
        return intact

    def _write(self, part: Path, descriptor: int, offset: int, data: bytes) -> None:
        """Append a piece, whole or not at all. Raises OSError; where the disk is full, something has made room."""
        try:
            os.ftruncate(descriptor, offset)
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                self._evict(1, keep=part)
            raise

    def _make_room(self, size: int, keep: Path) -> None:
        used = sum(path.stat().st_size for path in self._files())
        if used + size > self._limit_bytes:
            self._evict(used + size - self._limit_bytes, keep)

    def _evict(self, size: int, keep: Path) -> None:
        """Remove the files that were used longest ago, of `size` bytes or more in all."""
        with FileLock(self._folder / "evict.lock"):
            for path in sorted(self._files(), key=_used):
                if size <= 0:
                    return
                if path != keep and path.exists():
                    size -= path.stat().st_size
                    path.unlink()

    def _files(self) -> list[Path]:
        return [*self._folder.glob("*/*.tar"), *self._folder.glob("*/*.part")]

    def _path(self, url: str, shard: Shard) -> Path:
        name = hashlib.sha256(f"{url}\n{shard.size}\n{shard.sha256}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.tar"


def _used(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
