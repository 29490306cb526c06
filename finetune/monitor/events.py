"""events.jsonl: what happened to the run, as it happened."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.monitor.files import append_lines
from finetune.redact import redacted_tree

EVENTS = "events.jsonl"
"""Of a run's folder."""


class EventLog:
    """An append-only list of events."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append an event with its time (UTC) and without secrets, and wait until it is on the disk; what was
        written. Any thread may call it."""
        event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, **redacted_tree(fields)}
        append_lines(self._path, [event])
        return event
