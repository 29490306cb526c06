"""Copying checkpoints to where they are mirrored, in rank 0's background. What goes wrong here stops no run."""

import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune.checkpoint.background import in_background
from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.manifest import parse_manifest, readable
from finetune.checkpoint.mirror import Mirror
from finetune.checkpoint.names import MANIFEST, step_name
from finetune.checkpoint.retention import retained
from finetune.redact import redacted


class Upload(NamedTuple):
    """What came of copying a checkpoint."""

    name: str | None
    """The checkpoint's; None where it was not known yet which ones lack a copy."""
    failure: str | None
    """Why it has failed; it is tried again after the next save."""


class Uploads:
    """What copies checkpoints, reads the copies back, and lets go of what the settings do not ask for."""

    def __init__(self, folder: Path, mirror: Mirror, config: CheckpointConfig, prune: Callable[[int], None]) -> None:
        """Nothing happens until it is woken.

        Args:
            folder: of the run's checkpoints.
            prune: told of the newest checkpoint that has a copy, by its step.
        """
        self._folder = folder
        self._mirror = mirror
        self._config = config
        self._prune = prune
        self._last: Future[None] | None = None
        self._copying: str | None = None
        self._outcomes: deque[Upload] = deque()

    @property
    def woken(self) -> bool:
        """Whether it has ever been woken."""
        return self._last is not None

    def wake(self) -> None:
        """Copy what lacks a copy, once an earlier call is through."""
        before = self._last

        def job() -> None:
            if before:
                before.exception()
            self._tell(self._copy)

        self._last = in_background("upload", job)

    def drained(self, timeout_s: float) -> bool:
        """Wait, for so long at most, until what was there at the last call of `wake` has a copy or getting one has
        failed; whether that is so."""
        if self._last:
            try:
                self._last.exception(timeout_s)
            except TimeoutError:
                return False
        return True

    def outcomes(self) -> list[Upload]:
        """What has happened since this was asked last."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def _tell(self, copy: Callable[[], None]) -> None:
        self._copying = None
        try:
            copy()
        finally:
            if error := sys.exception():
                self._outcomes.append(Upload(self._copying, redacted(f"{type(error).__name__}: {error}")))

    def _copy(self) -> None:
        """Copy what is to be kept, the newest first, since that is worth the most; then prune both sides."""
        copies, local = self._mirror.manifests(), readable(self._folder)
        kept = retained(local, self._config)
        newest = -1
        for checkpoint in reversed(local):
            name, text = checkpoint.folder.name, (checkpoint.folder / MANIFEST).read_text(encoding="utf-8")
            if checkpoint.step in kept and copies.get(name) != text:
                self._copying = name
                self._mirror.upload(checkpoint)
                copies[name] = text
                self._outcomes.append(Upload(name, None))
            if copies.get(name) == text:
                newest = max(newest, checkpoint.step)
        self._prune_copies(copies, newest)
        self._prune(newest)

    def _prune_copies(self, copies: Mapping[str, str], newest: int) -> None:
        """Remove copies by the rule that holds for what they are copies of."""
        whole = []
        for name, text in copies.items():
            with suppress(ValueError):  # not a checkpoint's manifest
                whole.append(parse_manifest(text, Path(name)))
        kept = retained(whole, self._config) | {newest}
        self._mirror.keep_only([step_name(step) for step in kept])
