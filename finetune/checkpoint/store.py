"""Checkpoints on disk: written in the background, whole or not at all, verified before a byte is loaded.

checkpoints/step-00000500/rank-00000.pt, …   one state per rank
                          manifest.json      step, world, sizes and SHA-256 of all files, and the run's own notes
            latest                           name of the newest, replaced last
"""

import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from finetune.checkpoint.background import in_background
from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.files import GIB, disk_faults, free_bytes
from finetune.checkpoint.manifest import Checkpoint, Marks, find, newest_checkpoint, parse_manifest, readable
from finetune.checkpoint.mirror import Mirror, fetch_newest
from finetune.checkpoint.names import MANIFEST, finished
from finetune.checkpoint.retention import retained
from finetune.checkpoint.search import Report, go_on_from, remove_unfinished, search, set_aside_before
from finetune.checkpoint.uploads import Upload, Uploads
from finetune.checkpoint.writer import UNFINISHED, check_shared, discard, state_bytes, write_checkpoint
from finetune.errors import UserError
from finetune.ranks import Ranks, on_all, on_main

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Marks",
    "Ranks",
    "Saved",
    "Upload",
    "find",
    "finished",
    "newest_checkpoint",
    "state_bytes",
]

BEAT_S = 10.0


class Saved(NamedTuple):
    """A checkpoint that has been written."""

    checkpoint: Checkpoint
    seconds: float
    """From handing the state over until it was on the disk under its name."""


class CheckpointStore:
    """The checkpoints of one run. All ranks call `save`, `wait`, `newest`, `rollback` and `check_room` in one order."""

    def __init__(self, folder: Path, config: CheckpointConfig, ranks: Ranks) -> None:
        """Nothing is read or written yet.

        Args:
            folder: RUN/checkpoints; copies go to RUN/checkpoints below `config.upload`.
            ranks: a channel of the store's own, which it uses in whichever thread.
        """
        self._folder = folder
        self._config = config
        self._ranks = ranks
        self._writing: Future[Checkpoint] | None = None
        self._newest: Checkpoint | None = None
        self._completed: deque[Saved] = deque()
        self._held: set[int] = set()
        self._loading: int | None = None
        """The step of what was found last, until something is saved after it."""
        self._pruning = threading.Lock()
        self._mirror: Mirror | None = None
        self._uploads: Uploads | None = None
        if config.upload and ranks.is_main:
            self._mirror = Mirror(f"{config.upload.rstrip('/')}/{folder.parent.name}/{folder.name}")
            self._uploads = Uploads(folder, self._mirror, config, self._prune)

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any], marks: Marks | None = None) -> None:
        """Write a checkpoint in the background, each rank its own state; waits first for the one before.

        Args:
            step: steps of the plan that have been consumed.
            state: on the CPU, and nobody else's from now on.
            meta: the run's notes, plain values; those of rank 0 count.
            marks: why this one may be worth keeping.

        Raises:
            UserError, OSError: the one before could not be written.
        """
        self.wait()
        self._loading = None
        json.dumps(meta)  # a mistake in the notes comes up here
        began = time.perf_counter()

        def job() -> Checkpoint:
            checkpoint = write_checkpoint(self._folder, self._ranks, step, state, meta, marks or Marks())
            self._completed.append(Saved(checkpoint, time.perf_counter() - began))
            on_main(self._ranks, lambda: self._written(step))
            return checkpoint

        self._writing = in_background("checkpoint", job)

    def wait(self) -> Checkpoint | None:
        """Wait for the last save; the newest checkpoint that this process has saved.

        Raises:
            UserError: the disk is full or cannot be written.
            OSError: another fault, or one on another rank.
        """
        if writing := self._writing:
            writing.exception()  # a signal that interrupts this leaves what is being written to the next call
            self._writing = None
            self._newest = writing.result()
        return self._newest

    @property
    def failed(self) -> bool:
        """Whether the last save has failed, which `wait` raises; does not wait. Ranks may learn of it at different
        moments."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def completed(self) -> list[Saved]:
        """What has been written since this was asked last; does not wait."""
        return [self._completed.popleft() for _ in range(len(self._completed))]

    def uploads(self) -> list[Upload]:
        """On rank 0, what has come of copies to `checkpoint.upload` since this was asked last; does not wait."""
        return self._uploads.outcomes() if self._uploads else []

    def drain(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until what has been saved is copied to `checkpoint.upload`, or that has failed.

        Args:
            beat: called on rank 0 every so often meanwhile.
        """
        self.wait()

        def copied() -> None:
            if self._uploads:
                if not self._uploads.woken:
                    self._uploads.wake()  # for what an earlier start has left without a copy
                while not self._uploads.drained(BEAT_S):
                    beat()

        on_main(self._ranks, copied)

    def hold(self, step: int) -> None:
        """Keep a checkpoint, whatever the settings say, until it is released."""
        with self._pruning:
            self._held.add(step)

    def release(self, step: int) -> None:
        """Undo `hold`; the next save may remove the checkpoint."""
        with self._pruning:
            self._held.discard(step)

    def check_room(self, needed_bytes: int) -> None:
        """Check that the folder can be written, is one for all ranks, and has room for two checkpoints; for one where
        each one that is saved makes another go. At the start of a run, check that copies can be written as well.

        Args:
            needed_bytes: of a checkpoint, over all ranks.

        Raises:
            UserError: something of this is not so.
        """
        what = "a checkpoint"

        def make() -> None:
            with disk_faults(self._folder, what, needed_bytes):
                self._folder.mkdir(parents=True, exist_ok=True)

        def probe() -> None:
            check_shared(self._folder, self._ranks)
            with disk_faults(self._folder, what, needed_bytes), tempfile.TemporaryFile(dir=self._folder):
                pass

        def measure() -> None:
            there, free = len(finished(self._folder)), free_bytes(self._folder)
            more = 1 if there >= self._config.keep else 2
            if free < more * needed_bytes:
                raise UserError(
                    f"{self._folder} has {free / GIB:.2f} GiB of room, and a checkpoint takes {needed_bytes / GIB:.2f} "
                    f"GiB: there has to be room for {more} beside the {there} that lie there; make room, or set "
                    "run.folder to another disk"
                )
            if self._mirror and not there:  # later it is no reason to stop
                self._mirror.check()

        on_main(self._ranks, make)
        on_all(self._ranks, probe)
        on_main(self._ranks, measure)

    def newest(self, report: Report) -> Checkpoint | None:
        """The newest checkpoint that is whole, on all ranks the same; None where the run has none yet.

        What a kill has left unfinished is removed, and what is damaged is set aside for the one before it. A copy is
        fetched from `checkpoint.upload` where the run has no whole checkpoint or a damaged one, and the copy is newer
        than what is whole.

        Args:
            report: told on rank 0 of what is passed over or fetched.

        Raises:
            UserError: there are checkpoints and all of them are damaged, or there may be copies that cannot be read.
        """
        self.wait()
        on_main(self._ranks, lambda: remove_unfinished(self._folder))
        found, damaged = search(self._folder, self._ranks)
        if self._config.upload and (damaged or found is None):
            found = self._fetched(found, report)
        return self._go_on_from(found, damaged, report)

    def rollback(self, before: int, report: Report) -> Checkpoint | None:
        """The newest checkpoint of a step up to `before` that is whole, on all ranks the same; None where there is
        none.

        Args:
            before: steps of the plan.
            report: told on rank 0 of what is passed over.

        Raises:
            UserError: there are some, and all of them are damaged.
        """
        self.wait()
        with self._pruning:
            found, damaged = search(self._folder, self._ranks, before)
            return self._go_on_from(found, damaged, report)

    def _fetched(self, found: Checkpoint | None, report: Report) -> Checkpoint | None:
        """What has been found, or a newer copy."""

        def fetch() -> tuple[str, str] | None:
            step = found.step if found else None
            name = fetch_newest(self._mirror, self._folder, step, report) if self._mirror else None
            return (name, (self._folder / name / MANIFEST).read_text(encoding="utf-8")) if name else None

        fetched = on_main(self._ranks, fetch)
        return parse_manifest(fetched[1], self._folder / fetched[0]) if fetched else found

    def _go_on_from(self, found: Checkpoint | None, damaged: dict[str, str], report: Report) -> Checkpoint | None:
        """Tidy up around what has been found, which stays until something is saved after it."""

        def settle() -> None:
            if found:
                go_on_from(found, damaged, report)
            elif useless := damaged | set_aside_before(self._folder):
                told = "; ".join(f"{name}: {wrong}" for name, wrong in useless.items())
                raise UserError(
                    f"no checkpoint in {self._folder} can be used ({told}): restore one from a copy, or start another "
                    "run with another run.name"
                )

        on_main(self._ranks, settle)
        self._loading = found.step if found else None
        return found

    def _written(self, step: int) -> None:
        """What follows on rank 0 when a checkpoint lies there."""
        self._prune(-1 if self._uploads else step)
        if self._uploads:
            self._uploads.wake()

    def _prune(self, copied: int) -> None:
        """Remove what no setting asks for up to the step `copied`; what is newer, and so perhaps not copied yet, only
        where there would be no room for two more."""
        with self._pruning:
            there = readable(self._folder)
            tight = bool(there) and free_bytes(self._folder) < 2 * there[-1].size
            kept = retained(there, self._config) | self._held | {self._loading}
            gone = [
                checkpoint.folder.rename(
                    checkpoint.folder.with_suffix(UNFINISHED)
                )  # so that there is never half of one
                for checkpoint in there
                if checkpoint.step not in kept and (checkpoint.step <= copied or tight)
            ]
        for folder in gone:
            discard(folder)
