"""Whether the disk is about to be full, told while there is time to make room."""

from pathlib import Path
from typing import Any

from finetune.checkpoint.files import GIB, free_bytes

RECOVERED = 1.1
"""There is room again from so many times what is wanted on, so that a disk at the limit is told once."""


class DiskCheck:
    """Looks at the file systems that a run and its checkpoints lie on."""

    def __init__(self, folder: Path, free_gib: float) -> None:
        """Nothing is looked at yet.

        Args:
            folder: the run's; its checkpoints may lie behind a link.
            free_gib: so much room is wanted at least.
        """
        self._folders = (folder, folder / "checkpoints")
        self._least = free_gib * GIB
        self._low = False

    def look(self, checkpoint_bytes: int) -> dict[str, Any] | None:
        """Once whenever room has become scarce, the fields of the event `disk nearly full`; else None.

        Args:
            checkpoint_bytes: room that the next checkpoint takes.

        Raises:
            OSError: the file system does not answer.
        """
        needed = max(self._least, checkpoint_bytes)
        free, folder = min((free_bytes(folder), folder) for folder in self._folders)
        before, self._low = self._low, free < needed * (RECOVERED if self._low else 1.0)
        if before or not self._low:
            return None
        return {"folder": str(folder), "free_gib": round(free / GIB, 2), "needed_gib": round(needed / GIB, 2)}
