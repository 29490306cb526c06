"""What is new in events.jsonl, which another process writes meanwhile."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

BEGINNINGS = ("started", "resumed")


def new_events(path: Path, offset: int | None) -> tuple[list[dict[str, Any]], int]:
    """The events from an offset on, and the offset of what follows. A line that is not whole yet is left for later; one
    that a kill has cut short is passed over.

    Args:
        offset: in bytes; None begins with the last start, as does one beyond the end: the file is another one.
    """
    if not path.is_file():
        return [], 0
    if offset is None or offset > path.stat().st_size:
        offset = _last_beginning(path)
    with path.open("rb") as file:
        file.seek(offset)
        whole = file.read().rpartition(b"\n")[0]
    events = [event for _, event in _parsed(whole)]
    return events, offset + len(whole) + bool(whole)


def _last_beginning(path: Path) -> int:
    """The offset of the last start's first event."""
    found = 0
    for offset, event in _parsed(path.read_bytes()):
        if event["kind"] in BEGINNINGS:
            found = offset
    return found


def _parsed(text: bytes) -> list[tuple[int, dict[str, Any]]]:
    found, offset = [], 0
    for line in text.split(b"\n"):
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("kind"), str):
                found.append((offset, event))
        offset += len(line) + 1
    return found
