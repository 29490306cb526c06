"""What every command reads of a run's folder."""

from pathlib import Path
from typing import Annotated

import typer
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import Config, typed
from finetune.errors import UserError
from finetune.monitor.files import recipe_step
from finetune.recipes import explain

RunFolder = Annotated[Path, typer.Argument(help="The run's folder, runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_config(run: Path, name: str = "config.yaml") -> Config:
    """The recipe that a run was last started with, or an earlier one that it keeps. Raises UserError where the folder
    holds none that this version reads."""
    path = run / name
    if not path.is_file():
        raise UserError(f"{run} is not a run's folder (it has no {name}): give runs/NAME")
    try:
        return typed(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(f"{path} is not of this version: {explain(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not what a run has written: start the run again, which writes it anew") from error


def recipe_name(run: Path, step: int) -> str:
    """The file in a run's folder that holds the recipe with which it came to a step."""
    names = {recipe_step(path): f"recipes/{path.name}" for path in (run / "recipes").glob("step-*.yaml")}
    begun = [first for first in names if first < step]
    return names[max(begun)] if begun else "config.yaml"
