"""The model that a run has trained so far."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune.checkpoint.store import newest_checkpoint
from finetune.runs.folder import RunFolder, read_config


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="Folder for the diffusers model.")],
) -> None:
    """Export the newest checkpoint of a run, which may go on meanwhile, as a diffusers folder."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    # Only this command needs torch and the model, whose imports take seconds.
    from finetune.checkpoint.export import build_pipeline
    from finetune.checkpoint.export import export as write
    from finetune.distributed.fragments import load_parameters
    from finetune.model.assemble import Trainee
    from finetune.model.families import load_components
    from finetune.phases import trains_text_encoder

    config = read_config(run)
    components = load_components(config.model)
    trainee = Trainee(components, config.model.clip_skip, trains_text_encoder(config.phases, config.optim))
    load_parameters(trainee, checkpoint.read, checkpoint.world)
    pipeline = build_pipeline(
        trainee.unet, components.vae, trainee.text_encoder, components.tokenizer, config.diffusion
    )
    write(pipeline, out, model=config.model, steps=checkpoint.step)
    Console().print(f"{out} holds the model after {checkpoint.step:,} steps")
