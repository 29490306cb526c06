"""What every command reads of a run's folder."""

from pathlib import Path
from typing import Annotated

import typer
from omegaconf import OmegaConf

from finetune.config import Config, typed
from finetune.errors import UserError

RunFolder = Annotated[Path, typer.Argument(help="The run's folder, runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_config(run: Path, name: str = "config.yaml") -> Config:
    """The recipe that a run was last started with, or an earlier one that it keeps. Raises UserError where the folder
    holds none."""
    path = run / name
    if not path.is_file():
        raise UserError(f"{run} is not a run's folder (it has no {name}): give runs/NAME")
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    return typed(merged)  # type: ignore[arg-type]
