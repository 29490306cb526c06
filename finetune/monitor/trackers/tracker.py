"""What a tracker is asked to do, in this order and from one thread."""

from typing import Literal, Protocol

from PIL import Image

Level = Literal["info", "warn", "error"]
Ended = Literal["finished", "preempted", "stopped", "failed"]
"""How a run has ended, as status.json says it."""


class Tracker(Protocol):
    """Where metrics and pictures can be sent. Whatever it raises switches it off."""

    def open(self) -> None:
        """Begin, or go on."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send one step's numbers."""

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send a picture."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tell whoever watches."""

    def rolled_back(self, step: int) -> None:
        """Take back what was sent of the steps beyond `step`, or begin anew."""

    def close(self, ended: Ended) -> None:
        """Send what is left."""

    def abandon(self) -> None:
        """Let go of what would keep the process from ending. Called from another thread, once the tracker has failed or
        does not answer; returns at once."""
