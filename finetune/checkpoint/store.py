"""Checkpoints on disk: written whole or not at all, verified before a byte is loaded.

    checkpoints/step-00000500/rank-00000.pt, …   one state per rank
                              manifest.json      step, world, sizes and SHA-256 of all files, and the run's own notes
                latest                           name of the newest, replaced last

All ranks write into `step-N.tmp/`; only when every file is on the disk does rank 0 write the manifest and give the
folder its name, so a kill at any moment leaves the checkpoint before it.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune.data.index import file_sha256
from finetune.errors import UserError

LATEST = "latest"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")


class Ranks(Protocol):
    """What the store needs to know of the processes."""

    rank: int
    is_main: bool

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been read."""

    folder: Path
    step: int
    """Optimizer steps done."""
    world: int
    """Ranks that saved it."""
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def ranks(self) -> tuple[Callable[[int], dict[str, Any]], int]:
        """What reads a rank's state, and how many there are."""
        return self.read, self.world

    def read(self, rank: int) -> dict[str, Any]:
        """The state that a rank saved, mapped from the file; nothing but tensors and plain values is unpickled."""
        state: dict[str, Any] = torch.load(
            self.folder / _rank_file(rank), weights_only=True, mmap=True, map_location="cpu"
        )
        return state

    def damage(self) -> str | None:
        """What is wrong with its files; None where sizes and hashes are those of the manifest."""
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"] or file_sha256(path) != expected["sha256"]:
                return f"{name} is not as it was written"
        return None


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self._folder = folder
        self._keep = keep
        self._ranks = ranks

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> Checkpoint:
        """Write a checkpoint of all ranks, each calling this with its own state, and prune the oldest."""
        final = self._folder / f"step-{step:08d}"
        temporary = final.with_suffix(".tmp")
        if self._ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._ranks.barrier()

        name = _rank_file(self._ranks.rank)
        with (temporary / name).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        size = (temporary / name).stat().st_size
        written = self._ranks.gather((name, {"size": size, "sha256": file_sha256(temporary / name)}))

        if self._ranks.is_main:
            manifest = {"step": step, "world": len(written), "files": dict(written), "meta": meta}
            _write_durably(temporary / MANIFEST, json.dumps(manifest, indent=1))
            _sync_folder(temporary)
            if final.exists():  # damaged, or else the run would have resumed from it
                final.rename(_aside(final))
            temporary.rename(final)
            _sync_folder(self._folder)
            _write_durably(self._folder / f"{LATEST}.tmp", final.name)
            (self._folder / f"{LATEST}.tmp").replace(self._folder / LATEST)
            _sync_folder(self._folder)
            self._prune()
        self._ranks.barrier()
        return _opened(final)

    def newest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where the run has none yet. All ranks get the same.

        Args:
            report: told, on rank 0, of every damaged one that is passed over.

        Raises:
            UserError: there are checkpoints and all of them are damaged.
        """
        verdict = self._ranks.gather(self._judge() if self._ranks.is_main else None)[0]
        name, damaged = verdict
        for sentence in damaged if self._ranks.is_main else ():
            report(sentence)
        if name is None and damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be used ({'; '.join(damaged)}): restore one from a copy, or "
                "start another run with another run.name"
            )
        return _opened(self._folder / name) if name else None

    def _judge(self) -> tuple[str | None, list[str]]:
        """The newest whole checkpoint's name, and what is wrong with those after it."""
        damaged: list[str] = []
        for folder in reversed(finished(self._folder)):
            try:
                wrong = _opened(folder).damage()
            except (OSError, ValueError, KeyError) as error:
                wrong = f"{MANIFEST} cannot be read: {error}"
            if wrong is None:
                return folder.name, damaged
            damaged.append(f"{folder.name}: {wrong}")
        return None, damaged

    def _prune(self) -> None:
        for folder in finished(self._folder)[: -self._keep]:
            shutil.rmtree(folder)


def finished(folder: Path) -> list[Path]:
    """The checkpoints that have their final name, oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def newest_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that `latest` names, for tools that read a run from outside. Raises UserError if there is none."""
    try:
        return _opened(folder / (folder / LATEST).read_text(encoding="utf-8").strip())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no finished checkpoint: give the folder of a run that has saved one"
        ) from error


def _opened(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Checkpoint(folder, manifest["step"], manifest["world"], manifest["meta"], manifest["files"])


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _aside(folder: Path) -> Path:
    """A free name under which a damaged checkpoint is kept."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    return path


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
