"""What a run saves of itself, and what follows once it lies on the disk."""

from contextlib import suppress
from typing import Any

from finetune.checkpoint.exporter import BackgroundExport
from finetune.checkpoint.resume import package_versions
from finetune.checkpoint.store import BEAT_S, Checkpoint, Marks
from finetune.config import resolved
from finetune.errors import UserError
from finetune.health.judge import Health
from finetune.monitor.watch import Watch
from finetune.opening import Opening
from finetune.ranks import on_main


class Saving:
    """The position of a run beside its plan step, and its checkpoints."""

    def __init__(self, opening: Opening) -> None:
        """Take up what the checkpoint holds that the run goes on from."""
        self._opening = opening
        self._parts = opening.parts
        self.store = opening.store
        self.health = Health(self._parts.config.health, fp16=self._parts.distributed.scales_loss)
        self.updates = 0
        """Optimizer updates so far: the steps that were neither bad nor undone."""
        run, export = self._parts.config.run_folder, self._parts.config.export
        self._exports = BackgroundExport(run, export) if opening.watch else None
        checkpoint = opening.parts.checkpoint
        if checkpoint:
            self.recall(checkpoint, compare=not opening.parts.changed)

    def recall(self, checkpoint: Checkpoint, *, compare: bool = True) -> None:
        """Go on from what a checkpoint says beside the state of the ranks.

        Args:
            compare: whether steps from now on are like those before it, and are judged by them.
        """
        if compare:
            self.health.load(checkpoint.meta["health"])
        self.updates = checkpoint.meta["updates"]

    def save(self, done: int, marks: Marks, *, looked: bool) -> None:
        """Save a checkpoint after `done` steps of the plan in the background. Raises what became of the one before.

        Args:
            looked: whether what is due after these steps has been looked at.
        """
        on_main(self._parts.distributed, self._opening.lock.check)
        self._opening.pulse.at(done, "saving")
        self.written()  # so that there are never two copies of the state in memory
        feed = self._parts.feed
        meta: dict[str, Any] = {
            "identity": feed.identity(done),
            "journal": feed.journal.to_plain(),
            "config": resolved(self._parts.config),
            "model": self._parts.shapes,
            "packages": package_versions(),
            "health": self.health.state(),
            "updates": self.updates,
            "looked": looked,
        }
        self.store.save(done, self._parts.distributed.state(), meta, marks)

    def at(self, done: int) -> Checkpoint:
        """The checkpoint that has just been saved after `done` steps, once it is on the disk."""
        checkpoint = self.written()
        assert checkpoint is not None
        assert checkpoint.step == done
        return checkpoint

    def written(self) -> Checkpoint | None:
        """Wait for the last save; the newest checkpoint of this start. Raises what became of it, once it is told."""
        try:
            return self.store.wait()
        except (OSError, UserError) as error:
            with suppress(OSError):  # the same full disk
                if watch := self._opening.watch:
                    watch.event("checkpoint failed", reason=str(error))
            raise

    def attend(self) -> None:
        """Tell what has been saved, copied and exported since the last call, and begin the export that is due."""
        saved, watch = self.store.completed(), self._opening.watch
        if watch is None or self._exports is None:
            return
        for one in saved:
            watch.saved(one.checkpoint.step, one.checkpoint.folder, one.seconds)
        for upload in self.store.uploads():
            watch.event("upload", **upload._asdict())
        for export in self._exports.poll():
            self.store.release(export.step)
            watch.exported(export.step, export.path, export.seconds, export.error)
        for one in saved:
            self._export(one.checkpoint.step, watch, self._exports)

    def finish(self, *, in_haste: bool) -> None:
        """Wait until everything lies where it belongs.

        Args:
            in_haste: give up what can be had later as well: exports, and copies behind a URL.
        """
        self.written()
        if in_haste:
            self.attend()
            if self._exports:
                self._exports.close()
            return
        self._wait_for_exports()
        self.attend()
        self._wait_for_exports()
        self.store.drain(self._beat)
        self.attend()

    def _wait_for_exports(self) -> None:
        while self._exports and not self._exports.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        """Tell that this rank waits and has not stopped."""
        self._opening.pulse.at(self._parts.total_steps, "saving")

    def _export(self, step: int, watch: Watch, exports: BackgroundExport) -> None:
        """Begin to export the checkpoint of a step where that is due; it stays meanwhile."""
        if not exports.due(step):
            return
        self.store.hold(step)
        if not exports.start(step):
            self.store.release(step)
            if exports.step is not None:
                watch.event("export left out", step=step, reason=f"that of step {exports.step} still goes on")
