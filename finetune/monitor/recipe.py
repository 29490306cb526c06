"""The recipe as a run's folder holds it: config.yaml, and recipes/step-N.yaml, each of which holds from step N on."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.flat import Changes, differences, flattened
from finetune.monitor.files import recipe_step, replace_text

FILE_NAME = "config.yaml"


def saved_recipe(run: Path) -> dict[str, Any]:
    """The recipe with which a run was last started, by dotted names; empty where there is none yet."""
    path = run / FILE_NAME
    return flattened(OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}


def keep_recipe(run: Path, recipe: dict[str, Any], done_steps: int) -> Changes:
    """Write down the recipe with which a run goes on after `done_steps` steps; what differs from that of the last
    start, before and after."""
    before, text = saved_recipe(run), OmegaConf.to_yaml(OmegaConf.create(recipe))
    replace_text(run / FILE_NAME, text)
    folder = run / "recipes"
    folder.mkdir(exist_ok=True)
    kept = [path for path in sorted(folder.glob("step-*.yaml")) if recipe_step(path) < done_steps]
    for later in set(folder.glob("step-*.yaml")) - set(kept):
        later.unlink()
    if not kept or kept[-1].read_text(encoding="utf-8") != text:
        replace_text(folder / f"step-{done_steps:08d}.yaml", text)
    return differences(before, flattened(recipe)) if before else {}
