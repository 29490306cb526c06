"""Where every rank is, in a file that can be read from outside and outlives it, whatever kills it.

A rank writes into mapped memory, so that it costs no call of the system; what was written is the kernel's and not lost
with the process. Other nodes see it after `sync`, which the watchdog calls every few seconds.
"""

import mmap
import os
import socket
import struct
import time
from pathlib import Path
from typing import Literal, NamedTuple, get_args

FOLDER = "pulse"
"""Of a run's folder."""
Activity = Literal["starting", "data", "forward", "backward", "update", "validating", "sampling", "saving", "exporting"]
_CODES = {name: name.encode() for name in get_args(Activity)}
_BEAT = struct.Struct("<qqd16s")
"""step, turn, time, activity"""
_LIFE = struct.Struct("<q?")
"""ticks, waits"""
_OWNER = struct.Struct("<q64s")
"""pid, host"""
_LIFE_AT, _OWNER_AT, _SIZE = 64, 128, 256


class Beat(NamedTuple):
    """Where a rank is, or was when it ended."""

    rank: int
    host: str
    pid: int
    step: int
    """Counted from 0."""
    turn: int
    """What the rank has begun in that step, counted from 0; ranks do the same things in the same order."""
    activity: str
    time: float
    """When it began that, by its own clock, in seconds since 1970."""
    ticks: int
    """Grows every few seconds as long as the process can do anything."""
    waits: bool
    """Whether it was waiting for the other ranks at the last tick, as far as it can tell."""


class Pulse:
    """The file of this rank. Writing it is cheap enough for the loop's innermost parts (about a microsecond)."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Make the file, in place of that of an earlier start, which another process may still be writing.

        Args:
            folder: FOLDER of the run's folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rank = rank
        self.host, self.pid = socket.gethostname()[:64], os.getpid()
        self.place = (0, -1)
        """(step, turn)"""
        self._ticks = 0
        path = folder / f"rank-{rank:05d}"
        temporary = path.with_suffix(".tmp")
        with temporary.open("w+b") as file:
            file.write(bytes(_SIZE))  # room on a full disk: a hole in mapped memory would end the process later
            file.flush()
            self._file = os.dup(file.fileno())
        self._memory = mmap.mmap(self._file, _SIZE)
        _OWNER.pack_into(self._memory, _OWNER_AT, self.pid, self.host.encode()[:64])
        self.at(0, "starting")
        temporary.replace(path)

    def at(self, step: int, activity: Activity) -> None:
        """Tell that this rank begins something in a step, counted from 0."""
        known, turn = self.place
        self.place = (step, turn + 1 if step == known else 0)
        _BEAT.pack_into(self._memory, 0, *self.place, time.time(), _CODES[activity])

    def tick(self, *, waits: bool) -> None:
        """Tell that the process is alive, and whether it waits for others."""
        self._ticks += 1
        _LIFE.pack_into(self._memory, _LIFE_AT, self._ticks, waits)

    def sync(self) -> None:
        """Let other nodes see what was written; may wait for the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._memory.close()
        os.close(self._file)


def read_pulses(folder: Path) -> list[Beat]:
    """Where all ranks of a run's last start are or were, in their order.

    A reader may catch a rank in the middle of a beat; its next look will not.
    """
    return [_read(path) for path in sorted(folder.glob("rank-[0-9][0-9][0-9][0-9][0-9]"))]


def clear_pulses(folder: Path) -> None:
    """Forget the last start. To be called by one rank before any makes its pulse."""
    for path in folder.glob("rank-*"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Beat:
    data = path.read_bytes()
    step, turn, at, activity = _BEAT.unpack_from(data)
    pid, host = _OWNER.unpack_from(data, _OWNER_AT)
    rank = int(path.name.removeprefix("rank-"))
    return Beat(rank, _text(host), pid, step, turn, _text(activity), at, *_LIFE.unpack_from(data, _LIFE_AT))


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode()
