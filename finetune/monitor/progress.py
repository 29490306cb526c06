"""The progress bar: step, loss, images/s and what is left; plain lines where nobody looks at a terminal."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class ProgressBar:
    """Progress of optimizer steps on stderr."""

    def __init__(self, total_steps: int, done: int) -> None:
        self._total = total_steps
        self._console = Console(stderr=True)
        self._last_line = 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.1f} images/s"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("step", total=total_steps, completed=done, loss=float("nan"), speed=0.0)
            self._bar.start()

    def update(self, step: int, loss: float, images_per_s: float, eta_s: float) -> None:
        """Show where the run is."""
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss, speed=images_per_s)
        elif step == self._total or time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            eta = timedelta(seconds=round(eta_s))
            self.say(f"step {step:,}/{self._total:,}  loss {loss:.4f}  {images_per_s:.1f} images/s  ETA {eta}")

    def lengthen(self, total_steps: int) -> None:
        """Take another length."""
        self._total = total_steps
        if self._bar:
            self._bar.update(self._task, total=total_steps)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar:
            self._bar.stop()
