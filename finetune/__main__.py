"""`python -m finetune conf=NAME [key=value …]`: compose the recipe with Hydra, check it, train."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra

from finetune.config import Config, check, typed
from finetune.entry import enter
from finetune.recipes import compose_recipe, packaged_folder, recipe_folder, split_arguments


def main() -> None:
    """Train what the arguments ask for, or do what Hydra's own flags say."""
    name, overrides = split_arguments(sys.argv[1:])
    folder = recipe_folder(name)
    if any(argument.startswith("-") for argument in overrides):
        hydra_command(name, folder, overrides)
    else:
        start(compose_recipe(name, folder, overrides))


def start(config: Config) -> None:
    """Check a recipe against the number of processes, then train. Nothing heavy is imported before that."""
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    from finetune.train import train

    train(config)


def hydra_command(name: str, folder: Path, arguments: Sequence[str]) -> None:
    """Hydra's own flags (--cfg job, --help, --info …), which print and train only if none of them says otherwise."""
    own = [
        f"hydra.searchpath=[file://{packaged_folder()}]",
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
    ]
    # Settings in one row: of several with flags between them, Hydra reads the first alone.
    settings = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    flags = [argument for argument in arguments if argument not in settings]
    sys.argv = [sys.argv[0], "--config-name", name, *flags, *settings, *own]
    hydra.main(version_base="1.3", config_path=str(folder))(lambda composed: start(typed(composed)))()


if __name__ == "__main__":
    enter(main)
