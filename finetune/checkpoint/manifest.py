"""What a checkpoint on the disk consists of, and which there are."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoint.names import MANIFEST, finished, rank_file, step_name
from finetune.data.index import file_sha256
from finetune.errors import UserError

SHA256 = re.compile(rf"[0-9a-f]{{{2 * hashlib.sha256().digest_size}}}")


@dataclass(frozen=True)
class Marks:
    """Why a checkpoint may be worth keeping."""

    phase_border: bool = False
    """A phase of the run ends here."""
    validation_loss: float | None = None
    """The loss on what is held out, where it was taken at this step."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been read."""

    folder: Path
    step: int
    """Steps of the plan that have been consumed."""
    world: int
    """Ranks that saved it."""
    meta: dict[str, Any]
    """The run's own notes."""
    files: dict[str, dict[str, Any]]
    """Each file's `size` in bytes and `sha256`."""
    marks: Marks = Marks()

    @property
    def ranks(self) -> tuple[Callable[[int], dict[str, Any]], int]:
        """What reads a rank's state, and how many there are."""
        return self.read, self.world

    @property
    def size(self) -> int:
        """Bytes of all ranks' files."""
        return sum(file["size"] for file in self.files.values())

    def read(self, rank: int) -> dict[str, Any]:
        """The state that a rank saved, mapped from the file; nothing but tensors and plain values is unpickled."""
        state: dict[str, Any] = torch.load(
            self.folder / rank_file(rank), weights_only=True, mmap=True, map_location="cpu"
        )
        return state

    def damage(self, part: int = 0, parts: int = 1) -> str | None:
        """What is wrong with its files; None where they are those of the manifest.

        Args:
            part: sizes are all checked, hashes those of the files number part, part + parts, …
        """
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["size"]:
                return f"{name} has {size:,} bytes and was written with {expected['size']:,}"
        for name in sorted(self.files)[part::parts]:
            if file_sha256(self.folder / name) != self.files[name]["sha256"]:
                return f"{name} is not as it was written"
        return None


def manifest_text(step: int, files: Mapping[str, dict[str, Any]], meta: Mapping[str, Any], marks: Marks) -> str:
    """The manifest of a checkpoint with a file of each rank."""
    manifest = {"step": step, "world": len(files), "files": files, "meta": meta, "marks": asdict(marks)}
    return json.dumps(manifest, indent=1)


def read_manifest(folder: Path) -> Checkpoint:
    """A checkpoint by its folder. Raises OSError or ValueError where its manifest cannot be read."""
    return parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"), folder)


def parse_manifest(text: str, folder: Path) -> Checkpoint:
    """A checkpoint by its manifest, which is taken for nobody's in particular: every name and number in it is checked.

    Raises:
        ValueError: it is not that of a checkpoint of the folder's name.
    """
    manifest = json.loads(text)
    try:
        files = {str(name): {"size": f["size"], "sha256": f["sha256"]} for name, f in manifest["files"].items()}
        marks = Marks(**manifest.get("marks", {}))
        found = Checkpoint(folder, manifest["step"], manifest["world"], manifest["meta"], files, marks)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is not a checkpoint's ({type(error).__name__}: {error})") from error
    if not (type(found.step) is type(found.world) is int and isinstance(found.meta, dict)):
        raise ValueError("its step and world must be numbers and its meta a mapping")
    if found.step < 0 or step_name(found.step) != folder.name:
        raise ValueError(f"it is that of step {found.step}")
    if found.world < 1 or files.keys() != {rank_file(rank) for rank in range(min(found.world, len(files) + 1))}:
        raise ValueError(f"its files are not those of {found.world} ranks")
    for name, file in files.items():
        if type(file["size"]) is not int or file["size"] < 1 or not SHA256.fullmatch(str(file["sha256"])):
            raise ValueError(f"its size and hash of {name} are none")
    if not isinstance(marks.validation_loss, int | float | None) or not isinstance(marks.phase_border, bool):
        raise ValueError("its marks are none")
    return found


def readable(folder: Path) -> list[Checkpoint]:
    """The checkpoints whose manifest can be read, oldest first; their files are not looked at."""
    found = []
    for path in finished(folder):
        try:
            found.append(read_manifest(path))
        except (OSError, ValueError):  # damaged, or removed since
            continue
    return found


def newest_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint, for tools that read a run from outside. Raises UserError if there is none."""
    checkpoints = readable(folder)
    if not checkpoints:
        raise UserError(f"{folder} holds no finished checkpoint: give the folder of a run that has saved one")
    return checkpoints[-1]


def find(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, for tools. Raises UserError with those that there are if there is none."""
    checkpoints = {checkpoint.step: checkpoint for checkpoint in readable(folder)}
    if step not in checkpoints:
        there = ", ".join(f"{step:,}" for step in checkpoints) or "none"
        raise UserError(f"{folder} holds no checkpoint of step {step:,}: there are those of {there}")
    return checkpoints[step]
