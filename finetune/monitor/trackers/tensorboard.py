"""Event files for TensorBoard."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from finetune.monitor.trackers.tracker import Ended, Level

FLUSH_S = 2
"""What a kill may cost, in seconds."""


class TensorBoardTracker:
    """Event files under RUN/tensorboard: a new one with every start and every rollback, which strikes out what older
    ones hold beyond where it begins, so that each step stands once."""

    def __init__(self, folder: Path, done_steps: int) -> None:
        self._folder = folder / "tensorboard"
        # What precedes the first step belongs to what is done again where nothing was saved.
        self._first = done_steps + 1 if done_steps else 0

    def open(self) -> None:
        """Begin a file."""
        self._writer = SummaryWriter(str(self._folder), purge_step=self._first, flush_secs=FLUSH_S)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Write a picture."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def alert(self, title: str, text: str, level: Level) -> None:
        """Write it among the texts."""
        self._writer.add_text(title, f"{level}: {text}")

    def rolled_back(self, step: int) -> None:
        """Begin another file after `step`."""
        self._writer.close()
        self._first = step + 1
        self.open()

    def close(self, ended: Ended) -> None:
        """Flush and close the file."""
        self._writer.close()

    def abandon(self) -> None:
        """Nothing: its threads are daemons."""
