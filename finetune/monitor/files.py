"""Files that other programs read while the run writes them: appended line by line, or replaced whole."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

UNWRITABLE = "backslashreplace"
"""Names of files need not be UTF-8; what is none of it in them is written as JSON escapes it."""


def replace_text(path: Path, text: str) -> None:
    """Write a file under another name and move it into place, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", errors=UNWRITABLE) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as JSON lines and wait until they are on the disk. Where it is full nothing is left of them: what
    follows part of a line would be lost with it.

    Raises:
        OSError: they could not be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    left = memoryview(text.encode("utf-8", UNWRITABLE))
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; none where it is not there. A last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def recipe_step(path: Path) -> int:
    """The number of steps that were done when a kept recipe began to hold."""
    return int(path.stem.removeprefix("step-"))
