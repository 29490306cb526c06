"""What a recipe takes of a GPU's memory, told without a GPU and without weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.config import Config, phases
from finetune.memory.filling import RESERVE
from finetune.memory.prediction import Model, Prediction
from finetune.model.families import load_skeleton
from finetune.optim.config import EmaConfig
from finetune.phases import Phase
from finetune.strategy import STRATEGIES

GIB = 2**30


def tell_memory(config: Config, gpus: int, gpu_gib: float | None, *, as_json: bool) -> None:
    """Print what every phase takes, and what each switch would make of the phase that takes most."""
    model = Model(partial(load_skeleton, config.model))
    with Console(stderr=True).status("counting what passes keep"):
        facts = predicted(config, gpus, None if gpu_gib is None else int(gpu_gib * GIB), model)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for table in (_phases(facts), _switches(facts)):
        Console().print(table)


def predicted(config: Config, gpus: int, gpu: int | None, model: Model) -> dict[str, Any]:
    """The whole prediction as plain values, in bytes. Switches are compared with `auto` as all: it takes what is left.

    Args:
        gpu: bytes of each GPU, where they are known.
    """
    told = [(phase, _needs(config, phase, gpus, gpu, model)) for phase in phases(config)]
    largest, _ = max(told, key=lambda each: each[1]["total"])
    return {
        "recipe": config.run.name,
        "gpus": gpus,
        "gpu_bytes": gpu,
        "fits_in_bytes": None if gpu is None else int((1.0 - RESERVE) * gpu),
        "phases": [{"phase": number, **needs} for number, (_, needs) in enumerate(told, 1)],
        "switches": {
            name: _needs(changed, phase, gpus, None, model)["total"]
            for name, changed, phase in _variants(config, largest, gpus)
        },
    }


def _needs(config: Config, phase: Phase, gpus: int, gpu: int | None, model: Model) -> dict[str, Any]:
    prediction = Prediction(config, phase, gpus, model)
    parts, size = prediction.bytes(gpu), prediction.size
    return {
        "micro_batch": size.samples,
        "width_px": size.width,
        "height_px": size.height,
        "parts": parts,
        "total": sum(parts.values()),
    }


def _variants(config: Config, phase: Phase, gpus: int) -> Iterator[tuple[str, Config, Phase]]:
    """The recipe as it is, and with one switch set otherwise."""
    yield "the recipe as it is", config, phase
    for name in STRATEGIES:
        if name != config.strategy.name and (name != "single" or gpus == 1):
            yield f"strategy={name}", replace(config, strategy=replace(config.strategy, name=name)), phase
    for checkpointing in ("none", "all"):
        model = replace(config.model, gradient_checkpointing=checkpointing)
        yield f"model.gradient_checkpointing={checkpointing}", replace(config, model=model), phase
    sliced = not config.model.vae_slicing
    model = replace(config.model, vae_slicing=sliced)
    yield f"model.vae_slicing={str(sliced).lower()}", replace(config, model=model), phase
    yield "data.latents=…", replace(config, data=replace(config.data, latents="…", random_crop=False)), phase
    for optimizer in ("adamw", "adamw8bit"):
        if optimizer != phase.optim.name:
            optim = replace(phase.optim, name=optimizer, options={})
            yield f"optim={optimizer}", config, replace(phase, optim=optim)
    yield "ema.decay=0.999 ema.device=model", replace(config, ema=EmaConfig(0.999, device="model")), phase
    for micro_batch in (phase.micro_batch // 2, 2 * phase.micro_batch):
        if micro_batch:
            yield f"train.micro_batch={micro_batch}", config, replace(phase, micro_batch=micro_batch)
    for precision in ("fp32", "bf16"):
        if precision != config.strategy.precision:
            strategy = replace(config.strategy, precision=precision)
            yield f"strategy.precision={precision}", replace(config, strategy=strategy), phase


def _phases(facts: Mapping[str, Any]) -> Table:
    names = list(facts["phases"][0]["parts"])
    title = f"GiB of each GPU of {facts['gpus']}, {facts['recipe']}"
    table = Table("phase", "micro-batch", "largest bucket", *names, "all", title=title, title_justify="left")
    for phase in facts["phases"]:
        size = f"{phase['width_px']}×{phase['height_px']}"
        sizes = [f"{phase['parts'][name] / GIB:.2f}" for name in names]
        table.add_row(str(phase["phase"]), str(phase["micro_batch"]), size, *sizes, _told(facts, phase["total"]))
    return table


def _switches(facts: Mapping[str, Any]) -> Table:
    table = Table("with", "GiB", title="each switch by itself, in the phase that takes most", title_justify="left")
    for name, total in facts["switches"].items():
        table.add_row(name, _told(facts, total))
    return table


def _told(facts: Mapping[str, Any], total: int) -> str:
    fits = facts["fits_in_bytes"] is None or total <= facts["fits_in_bytes"]
    return f"{total / GIB:.1f}" + ("" if fits else " too much")
