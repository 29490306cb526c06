"""The checkpoints of a run, as its tools find and read them."""

from pathlib import Path

from finetune.checkpoint import store
from finetune.checkpoint.store import Checkpoint, newest_checkpoint
from finetune.config import Config
from finetune.runs.folder import read_config, recipe_name

CHECKPOINTS = "checkpoints"


def find(run: Path, step: int | None) -> Checkpoint:
    """A run's checkpoint of a step, or its newest. Raises UserError with those that there are where there is none."""
    folder = run / CHECKPOINTS
    return newest_checkpoint(folder) if step is None else store.find(folder, step)


def recipe_at(run: Path, step: int) -> Config:
    """The recipe with which a run came to a step. Raises UserError where this version does not read it."""
    return read_config(run, recipe_name(run, step))
