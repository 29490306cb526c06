"""The checkpoints of a run, as its tools find and read them."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.checkpoint import store
from finetune.checkpoint.store import Checkpoint, newest_checkpoint
from finetune.config import Config
from finetune.monitor.watch import recipe_step
from finetune.runs.folder import read_config

CHECKPOINTS = "checkpoints"


def find(run: Path, step: int | None) -> Checkpoint:
    """A run's checkpoint of a step, or its newest. Raises UserError with those that there are where there is none."""
    folder = run / CHECKPOINTS
    return newest_checkpoint(folder) if step is None else store.find(folder, step)


def recipe_name(run: Path, step: int) -> str:
    """The file in a run's folder that holds the recipe with which it came to a step."""
    names = {recipe_step(path): f"recipes/{path.name}" for path in (run / "recipes").glob("step-*.yaml")}
    begun = [first for first in names if first < step]
    return names[max(begun)] if begun else "config.yaml"


def recipe_at(run: Path, step: int) -> Config:
    """The recipe with which a run came to a step. Raises UserError where this version does not read it."""
    return read_config(run, recipe_name(run, step))


def plain_recipe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The recipe of a checkpoint as plain values, whatever version wrote it: its own, or what its run's folder keeps;
    nothing where the checkpoint lies alone."""
    if "config" in checkpoint.meta:
        return dict(checkpoint.meta["config"])
    run = checkpoint.folder.parent.parent
    path = run / recipe_name(run, checkpoint.step)
    plain = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
