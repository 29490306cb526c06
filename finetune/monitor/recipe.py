"""The recipe as a run's folder holds it."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.flat import flattened

FILE_NAME = "config.yaml"


def saved_recipe(run: Path) -> dict[str, Any]:
    """The recipe with which a run was last started, by dotted names; empty where there is none yet."""
    path = run / FILE_NAME
    return flattened(OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}
