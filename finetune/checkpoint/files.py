"""Files that outlive a power cut, hashed while they are written."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT}
DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
GIB = 2**30


class HashingFile:
    """What torch.save needs of a file: its bytes are hashed on their way to the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes so far."""
        self.fault: OSError | None = None
        """What a write has raised, which torch tells as a RuntimeError of its own."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the file."""
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def write(self, data: bytes | memoryview) -> int:
        """Append some bytes."""
        try:
            self._file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing to do: `hashing` does it."""


@contextmanager
def hashing(path: Path) -> Iterator[HashingFile]:
    """A new file, on the disk when the block has ended. Raises OSError where that cannot be."""
    with path.open("wb") as raw:
        file = HashingFile(raw)
        try:
            yield file
        except RuntimeError:
            if file.fault:
                raise file.fault from None
            raise
        raw.flush()
        os.fsync(raw.fileno())


def write_durably(path: Path, text: str) -> None:
    """Write a text, and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str) -> None:
    """Write a text such that the file has the old one or the new one at any moment."""
    temporary = path.with_name(f"{path.name}.tmp")
    write_durably(temporary, text)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Room on the file system of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free


@contextmanager
def disk_faults(folder: Path, what: str, needed_bytes: int) -> Iterator[None]:
    """Tell a full or read-only disk as the user's matter.

    Args:
        what: is to be written, "the checkpoint of step 5".
        needed_bytes: room that it takes in all.
    """
    free = free_bytes(folder)
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{what} does not fit into {folder}: it takes {needed_bytes / GIB:.2f} GiB and {free / GIB:.2f} GiB "
                "were free; make room, or lower checkpoint.keep, and start again: what was saved before is whole"
            ) from error
        if error.errno in DENIED:
            raise UserError(
                f"{what} cannot be written into {folder} ({error.strerror}): it takes {needed_bytes / GIB:.2f} GiB "
                "there; make the folder writable and start again: what was saved before is whole"
            ) from error
        raise
