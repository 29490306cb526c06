"""What a recipe is told to take of a GPU's memory."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.config import Config, phases
from finetune.memory.filling import RESERVE
from finetune.memory.prediction import CONTEXT, Model, Prediction
from finetune.model.families import Components
from finetune.model.text import PromptEncoder
from finetune.recipes import read_recipe
from finetune.runs.__main__ import app
from tests.model.published import full_size

GIB = 2**30
SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]


def told(model: Path, *more: str) -> dict[str, Any]:
    arguments = ["plan", "conf=demo", "data.shards=none", f"model.path={model}", *SMALL, "--memory", "--json", *more]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    facts: dict[str, Any] = json.loads(done.output)
    return facts


def test_parts_add_up_and_need_no_data(tiny_model: Path) -> None:
    facts = told(tiny_model)
    (phase,) = facts["phases"]
    assert (phase["micro_batch"], phase["width_px"], phase["height_px"]) == (32, 64, 64)
    assert phase["total"] == sum(phase["parts"].values())
    parts = phase["parts"]
    assert parts["gradients"] == parts["weights"] < parts["optimizer"] == 2 * parts["weights"]
    assert parts["context"] == CONTEXT
    assert facts["switches"]["the recipe as it is"] == phase["total"]
    assert facts["switches"]["train.micro_batch=16"] < phase["total"] < facts["switches"]["train.micro_batch=64"]


def test_a_table_says_what_does_not_fit(tiny_model: Path) -> None:
    arguments = ["plan", "conf=demo", "data.shards=none", f"model.path={tiny_model}", *SMALL, "--memory"]
    many = ["train.micro_batch=3200", "train.global_batch=3200"]
    output = CliRunner().invoke(app, [*arguments, "--gpu-gib", "1", *many]).output
    assert "too much" in output


@cache
def sd15() -> Model:
    def skeleton() -> Components:
        parts = full_size("sd15")
        encoder = PromptEncoder([parts["text_encoder"]], clip_skip=1, join_chunks="trim")  # type: ignore[list-item]
        return Components(parts["unet"], parts["vae"], encoder, ())  # type: ignore[arg-type]

    return Model(skeleton)


def recipe(*more: str) -> Config:
    return read_recipe(["conf=sd15_24gb", "data.shards=none", *more])


def needs(config: Config, gpu: int | None = None) -> dict[str, int]:
    return Prediction(config, phases(config)[0], 2, sd15()).bytes(gpu)


def test_sd15_with_its_text_encoder_fits_two_cards_of_24_gb_at_1024_px() -> None:
    config = recipe()
    prediction = Prediction(config, phases(config)[0], 2, sd15())
    assert prediction.size == (8, 1024, 1024, 3)
    assert len(sd15().trainable) == len(sd15().sizes)
    least = sum(prediction.bytes().values())
    assert least < (1.0 - RESERVE) * 24 * GIB
    filled = sum(prediction.bytes(24 * GIB).values())
    assert least < filled < (1.0 - RESERVE) * 24 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["model.gradient_checkpointing=none", "model.vae_slicing=false"])
def test_what_the_recipe_switches_on_is_needed(switch: str) -> None:
    assert sum(needs(recipe(switch)).values()) > 24 * GIB


def test_latents_made_before_need_no_encoder_beside_the_passes() -> None:
    live, latents = needs(recipe()), needs(recipe("data.latents=made"))
    assert live.pop("encoding") > latents.pop("encoding") == 0
    assert live == latents
