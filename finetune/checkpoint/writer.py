"""Writing a checkpoint: whole or not there.

All ranks write into `step-N.tmp/`; only when every file is on the disk does rank 0 write the manifest and give the
folder its name, so a kill at any moment leaves the checkpoint before it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from finetune.checkpoint.files import disk_faults, hashing, replace_durably, sync_folder, write_durably
from finetune.checkpoint.manifest import Checkpoint, Marks, manifest_text, parse_manifest
from finetune.checkpoint.names import LATEST, MANIFEST, rank_file, step_name
from finetune.errors import UserError
from finetune.ranks import Ranks, on_all, on_main

UNFINISHED = ".tmp"


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(state_bytes(value) for value in inner)


def write_checkpoint(
    folder: Path, ranks: Ranks, step: int, state: dict[str, Any], meta: Mapping[str, Any], marks: Marks
) -> Checkpoint:
    """Write a checkpoint of all ranks, each of which calls this with its own state.

    Raises:
        UserError: the disk is full or cannot be written; on every rank.
        OSError: another fault of the disk; on every rank.
    """
    what, final = f"the checkpoint of step {step:,}", folder / step_name(step)
    temporary = final.with_suffix(UNFINISHED)
    needed = sum(on_all(ranks, lambda: state_bytes(state)))

    def begin() -> None:
        with disk_faults(folder, what, needed):
            discard(temporary)  # of an attempt that was killed
            temporary.mkdir(parents=True)

    def write() -> tuple[str, dict[str, Any]]:
        check_shared(temporary, ranks)
        name = rank_file(ranks.rank)
        with disk_faults(folder, what, needed), hashing(temporary / name) as file:
            torch.save(state, cast("IO[bytes]", file))
        return name, file.facts

    def name_it(files: Mapping[str, dict[str, Any]]) -> str:
        text = manifest_text(step, files, meta, marks)
        with disk_faults(folder, what, needed):
            commit(temporary, final, text)
        return text

    on_main(ranks, begin)
    try:
        files = dict(on_all(ranks, write))
        text = on_main(ranks, lambda: name_it(files))
    finally:
        if ranks.is_main:
            discard(temporary)  # there only where writing has failed, perhaps for want of room
    return parse_manifest(text, final)  # which other nodes may see late under its name


def check_shared(folder: Path, ranks: Ranks) -> None:
    """Raise UserError where a rank does not see a folder that rank 0 has made."""
    if not folder.is_dir():
        raise UserError(
            f"rank {ranks.rank} does not see {folder}, which rank 0 has made: let run.folder lie on a file system that "
            "all nodes share"
        )


def commit(temporary: Path, final: Path, manifest: str) -> None:
    """Give a folder whose files are on the disk its manifest and its name, and let `latest` name it."""
    write_durably(temporary / MANIFEST, manifest)
    sync_folder(temporary)
    set_aside(final)  # damaged, or else the run would have resumed from it
    temporary.rename(final)
    sync_folder(final.parent)
    replace_durably(final.with_name(LATEST), final.name)


def set_aside(folder: Path) -> Path | None:
    """Keep a damaged checkpoint under another name; that, or None where there is no such folder."""
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    return folder.rename(aside)


def discard(folder: Path) -> None:
    """Remove a folder that bears no final name, if it is there. What cannot be removed stays for the next start."""
    shutil.rmtree(folder, ignore_errors=True)
