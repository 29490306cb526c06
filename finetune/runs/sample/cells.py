"""The pictures of a table, sampled with the weights of a run's checkpoints."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from finetune.checkpoint.export import build_pipeline
from finetune.checkpoint.store import Checkpoint
from finetune.checkpoint.trained import Trained
from finetune.config import Config
from finetune.distributed.runtime import autocast
from finetune.errors import UserError
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.monitor.samples.config import Picture
from finetune.monitor.samples.sampling import Sampler
from finetune.runs.checkpoints import find, recipe_at


def sample_cells(
    run: Path,
    cells: list[tuple[int, Picture]],
    *,
    average: bool | None,
    device: str | None,
    batch: int,
    told: Callable[[int], None],
) -> list[Image.Image]:
    """The pictures of cells, each of a checkpoint's step, in their order. Every checkpoint is loaded once.

    Args:
        average: take the averages of the weights; None takes them where the run keeps them.
        device: as torch names it; None takes a GPU where there is one.
        batch: pictures sampled at a time, at most.
        told: called with the number of pictures whenever there are more.

    Raises:
        UserError: a checkpoint or the model that the run began with is not there, or the device has too little memory.
    """
    place = chosen_device(device)
    by_step: dict[int, list[int]] = defaultdict(list)
    for number, (step, _) in enumerate(cells):
        by_step[step].append(number)
    found: dict[int, Image.Image] = {}
    try:
        for step, numbers in by_step.items():
            sampler = trained_sampler(recipe_at(run, step), find(run, step), average, place)
            pictures = [cells[number][1] for number in numbers]
            with sampler.evaluating():
                for chosen in sampler.batches(pictures, batch):
                    drawn = sampler.sample([pictures[i] for i in chosen])
                    found |= zip((numbers[i] for i in chosen), drawn, strict=True)
                    told(len(drawn))
            del sampler  # before the next one is loaded
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the memory of {place} does not suffice: give a smaller --size, or --device cpu") from error
    return [found[number] for number in range(len(cells))]


def trained_sampler(config: Config, checkpoint: Checkpoint, average: bool | None, device: torch.device) -> Sampler:
    """A checkpoint's model as the run samples with it. Raises UserError where its weights cannot be had."""
    model = replace(config.model, gradient_checkpointing="none", attention="sdpa")
    components = load_components(model)
    Trained(model, components.modules, checkpoint.ranks, average=average, dtype=torch.float32).load()
    return Sampler(
        build_pipeline(components, config.diffusion).to(device),
        PromptTokenizer(components.tokenizers, model.max_tokens, model.pad_chunks),
        components.prompt_encoder,
        autocast(device, config.strategy.precision),
    )


def chosen_device(given: str | None) -> torch.device:
    """The device to sample on. Raises UserError where it cannot be used."""
    try:
        return torch.empty(0, device=given or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch comes without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {given} cannot be used ({reason}): give cpu, cuda or cuda:1") from error
