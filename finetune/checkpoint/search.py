"""Finding the checkpoint to go on from: verified by all ranks before a byte of it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from finetune.checkpoint.files import replace_durably
from finetune.checkpoint.manifest import Checkpoint, read_manifest
from finetune.checkpoint.names import ASIDE, LATEST, finished
from finetune.checkpoint.writer import UNFINISHED, discard, set_aside
from finetune.ranks import Ranks, on_all

Report: TypeAlias = Callable[[str, str], None]
"""Takes a kind of event and a sentence, on rank 0."""
DAMAGED = "damaged checkpoint"


def search(folder: Path, ranks: Ranks, before: int | None = None) -> tuple[Checkpoint | None, dict[str, str]]:
    """The newest checkpoint that is whole, and by name what is wrong with those after it; alike on all ranks.

    The files are divided over the ranks to be hashed.

    Args:
        before: the latest step that is looked at; None looks at all.
    """
    damaged: dict[str, str] = {}
    listed = on_all(ranks, lambda: [path.name for path in finished(folder)])
    for path in (folder / name for name in reversed(listed[0])):
        if before is not None and int(path.name.rpartition("-")[2]) > before:
            continue
        verdicts = ranks.gather(_judge(path, ranks, len(listed)))
        wrong = next((verdict for verdict in verdicts if verdict), None)
        if wrong is None:
            return read_manifest(path), damaged
        damaged[path.name] = wrong
    return None, damaged


def go_on_from(found: Checkpoint, damaged: dict[str, str], report: Report) -> None:
    """On rank 0, set aside what is damaged after the checkpoint that is taken, and let `latest` name that one."""
    for name, wrong in damaged.items():
        if name != found.folder.name:  # whose copy has been fetched by now
            set_aside(found.folder.with_name(name))
        report(DAMAGED, f"{name}: {wrong}")
    latest = found.folder.with_name(LATEST)
    if not latest.is_file() or latest.read_text(encoding="utf-8", errors="replace").strip() != found.folder.name:
        replace_durably(latest, found.folder.name)


def set_aside_before(folder: Path) -> dict[str, str]:
    """The damaged checkpoints that earlier starts have set aside."""
    names = sorted(path.name for path in folder.glob("step-*") if ASIDE.fullmatch(path.name))
    return dict.fromkeys(names, "set aside at an earlier start")


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill has left of a checkpoint that was being written, fetched or removed."""
    for path in folder.glob(f"step-*{UNFINISHED}"):
        discard(path)


def _judge(folder: Path, ranks: Ranks, world: int) -> str | None:
    """What this rank finds wrong with a checkpoint; it hashes its share of the files."""
    try:
        return read_manifest(folder).damage(ranks.rank, world)
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
