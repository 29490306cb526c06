"""Notices that the run stands still, finds out for which rank all wait, and ends it, so that it is started again."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune.data.outage import read_notes
from finetune.health import stalls
from finetune.health.pulse import Activity, Beat, Pulse, read_pulses
from finetune.health.stalls import Stall

EXIT_STALLED = 70
"""Exit code of every rank of a run that stood still."""
LONG: tuple[Activity, ...] = ("starting", "validating", "sampling", "saving", "exporting")
LONG_FACTOR = 6
"""What is in LONG may take so many times as long."""
LONGEST_LOOK_S = 5.0
"""Between two looks."""


class Watchdog:
    """A thread in every rank; a context. Every rank watches itself, and looks at the others once it is at a loss.

    It cannot run while its process is stopped, or stuck in a call that keeps Python from running anything else: then
    the other ranks end the run.
    """

    def __init__(
        self,
        pulse: Pulse,
        run: Path,
        *,
        world: int,
        stall_s: float,
        notes: Path,
        tell: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Prepare to watch a rank.

        Args:
            pulse: its own, in the run's folder.
            run: the run's folder, the same for all ranks.
            stall_s: with 0 nobody is watched.
            notes: folder of the notes of processes that wait for data; while there is one, nobody stands still.
            tell: called with the facts of the stall, from the watchdog's thread, right before the process ends.
        """
        self._pulse = pulse
        self._run = run
        self._stalls = run / stalls.FOLDER
        self._world = world
        self._stall_s = stall_s
        self._look_s = min(LONGEST_LOOK_S, stall_s / 20)
        self._notes = notes
        self._tell = tell
        self._main = threading.get_ident()
        self._known = [path.name for path in self._stalls.glob("*")]
        self._place = pulse.place
        self._still_s = 0.0
        self._beats: dict[int, Beat] = {}
        self._silent_s: dict[int, float] = {}
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._stall_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._stall_s:
            self._thread.join(timeout=LONGEST_LOOK_S)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._left.wait(self._look_s):
            now = time.monotonic()
            # Where the process itself was stopped for a while, that was nobody's standstill.
            passed_s, before = min(now - before, 2 * self._look_s), now
            with suppress(OSError):  # a disk that fails is noticed by whoever needs it
                self._look(passed_s)

    def _look(self, passed_s: float) -> None:
        self._pulse.tick(waits=is_waiting(self._main))
        self._pulse.sync()
        if self._pulse.place != self._place or read_notes(self._notes):
            self._place, self._still_s = self._pulse.place, 0.0
            self._beats.clear()
        else:
            self._still_s += passed_s
        if other := stalls.declared(self._stalls, self._known, self._pulse.host, self._pulse.pid):
            self._end(*other)
        elif self._still_s >= self._stall_s / 2 and (stall := self._look_around(passed_s)):
            self._declare(stall)

    def _look_around(self, passed_s: float) -> Stall | None:
        """Follow all ranks; what has happened when none of them has done anything for too long."""
        before, self._beats = self._beats, self._read()
        for rank, beat in self._beats.items():
            heard = rank not in before or beat.ticks != before[rank].ticks
            self._silent_s[rank] = 0.0 if heard else self._silent_s[rank] + passed_s
        if before and any(_place(beat) != _place(before[rank]) for rank, beat in self._beats.items()):
            self._still_s = self._stall_s / 2
        stall = self._stall()
        factor = LONG_FACTOR if stall.culprits[0].activity in LONG else 1
        return stall if self._still_s >= factor * self._stall_s else None

    def _read(self) -> dict[int, Beat]:
        beats = {rank: Beat(rank, "", 0, -1, 0, "starting", 0.0, 0, False) for rank in range(self._world)}
        return beats | {beat.rank: beat for beat in read_pulses(self._pulse.folder) if beat.rank < self._world}

    def _stall(self) -> Stall:
        silent = frozenset(rank for rank, silent_s in self._silent_s.items() if silent_s >= self._stall_s / 4)
        culprits = furthest_behind(list(self._beats.values()), silent)
        others = tuple(beat for beat in self._beats.values() if beat not in culprits)
        return Stall(culprits, others, self._still_s, silent)

    def _declare(self, stall: Stall) -> None:
        try:
            first = stall.declare(self._stalls)
        except OSError:  # nowhere to write; at least it is said
            first = True
        if first:
            print(f"{stall.sentence}; see {self._stalls / stall.name}", file=sys.stderr, flush=True)
        self._end(self._stalls / stall.name, stall.facts)

    def _end(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Leave word, and leave. The others are waited for a little, so that they can leave theirs."""
        try:
            with (folder / f"rank-{self._pulse.rank:05d}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if self._tell:
                self._tell(facts)
                stalls.mark_told(folder)
            deadline = time.monotonic() + 3 * self._look_s + 1.0
            while time.monotonic() < deadline and len(list(folder.glob("rank-*.txt"))) < self._world:
                time.sleep(self._look_s / 5)
        finally:
            os._exit(EXIT_STALLED)


def furthest_behind(beats: Sequence[Beat], silent: Collection[int]) -> tuple[Beat, ...]:
    """The ranks for which the others wait: those whose place is the earliest. Of several there, those of which nothing
    is heard; and of these, those that do not wait for others.

    Args:
        beats: of all ranks.
        silent: ranks of which nothing is heard.
    """

    def order(beat: Beat) -> tuple[int, int, bool, bool]:
        return beat.step, beat.turn, beat.rank not in silent, beat.waits

    first = min(map(order, beats))
    return tuple(beat for beat in beats if order(beat) == first)


def is_waiting(thread: int) -> bool:
    """Whether a thread of this process, by its identifier, is in a call of torch.distributed. On a GPU collectives are
    waited for elsewhere, and it can't be told."""
    frame = sys._current_frames().get(thread)
    return frame is not None and str(frame.f_globals.get("__name__")).startswith("torch.distributed")


def _place(beat: Beat) -> tuple[int, int, int]:
    return beat.pid, beat.step, beat.turn
