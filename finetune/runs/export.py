"""The model that a run has trained so far."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune.checkpoint.store import newest_checkpoint
from finetune.runs.folder import RunFolder, read_config


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="Folder for the diffusers model, or one .safetensors file.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="The weights themselves where the run keeps their average.")
    ] = False,
) -> None:
    """Export the newest checkpoint of a run, which may go on meanwhile."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    # Only this command needs torch and the model, whose imports take seconds.
    from finetune.checkpoint.export import build_pipeline, export_file
    from finetune.checkpoint.export import export as export_folder
    from finetune.distributed.fragments import load_parameters
    from finetune.model.assemble import Trainee
    from finetune.model.families import load_components

    config = read_config(run)
    components = load_components(config.model)
    load_parameters(Trainee(components), *checkpoint.ranks, ema=not raw)
    if out.suffix == ".safetensors":
        export_file(components, config.diffusion, out, steps=checkpoint.step)
    else:
        export_folder(build_pipeline(components, config.diffusion), out, model=config.model, steps=checkpoint.step)
    Console().print(f"{out} holds the model after {checkpoint.step:,} steps")
