"""What is looked at with every heartbeat of a run, in the thread that writes status.json."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.outage import read_notes
from finetune.monitor.alerts.disk import DiskCheck
from finetune.monitor.metrics import MetricsLog
from finetune.monitor.page import PageBeside


class Rounds:
    """Makes sure of what has been written, and tells of an outage of the data, a disk that is nearly full, and a page
    that is not served any more."""

    def __init__(
        self,
        logs: Sequence[MetricsLog],
        notes: Path,
        disk: DiskCheck,
        checkpoint_bytes: int,
        event: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        """Nothing has been looked at yet.

        Args:
            notes: folder where processes that wait for data leave their notes; those there are of killed ones.
            checkpoint_bytes: room that the next checkpoint takes.
            event: writes an event.
            say: prints a line.
        """
        self._logs = logs
        self._notes = notes
        self._disk = disk
        self._checkpoint_bytes = checkpoint_bytes
        self._event = event
        self._say = say
        self._paused = False
        self.page: PageBeside | None = None
        """What serves the run, once it does."""
        for note in notes.glob("*.json"):
            note.unlink()

    def __call__(self) -> dict[str, Any]:
        """Look; what status.json says over its fields while processes wait for data."""
        with suppress(OSError):  # a full disk is told by the next line that is written
            for log in self._logs:
                log.sync()
            if scarce := self._disk.look(self._checkpoint_bytes):
                self._event("disk nearly full", **scarce)
                self._say("disk nearly full: {free_gib} GiB left in {folder}".format(**scarce))
        if self.page and (reason := self.page.poll()):
            self._event("page failed", reason=reason)
            self._say(f"the page is not served: {reason}")
        return self._outage()

    def _outage(self) -> dict[str, Any]:
        notes = read_notes(self._notes)
        if bool(notes) != self._paused:
            if notes:
                self._event("data outage", **notes[0])
                self._say(f"paused: {notes[0]['what']} cannot be read ({notes[0]['reason']}); the run waits for it")
            else:
                self._event("data is back")
            self._paused = bool(notes)  # now that it is written down
        return {"state": "paused", "outage": notes[0]} if notes else {}
