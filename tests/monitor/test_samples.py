"""Sample grids."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from finetune.checkpoint.export import build_pipeline, export
from finetune.diffusion.config import DiffusionConfig
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.monitor.config import SamplesConfig
from finetune.monitor.samples import captioned_grid, sample_grid, sample_images, save_grid

Parts = tuple[Any, PromptTokenizer, Any]


def opened(folder: Path, clip_skip: int | None = None) -> Parts:
    """Pipeline, tokenizer and encoder of a model."""
    components = load_components(ModelConfig(path=str(folder), clip_skip=clip_skip))
    pipeline = build_pipeline(components, DiffusionConfig())
    return pipeline, PromptTokenizer(components.tokenizers, 225), components.prompt_encoder


@pytest.fixture
def parts(tiny_model: Path) -> Parts:
    return opened(tiny_model)


def config(**changes: Any) -> SamplesConfig:
    prompts = ["tag", "picture number 3", " ".join(["picture"] * 100)]
    return SamplesConfig(**{"prompts": prompts, "steps": 2, "width_px": 64, "height_px": 96, **changes})


def pixels(picture: Image.Image) -> npt.NDArray[np.int64]:
    return np.asarray(picture).astype(np.int64)


def test_pictures_do_not_depend_on_the_batch(twin: Path) -> None:
    alone = sample_images(*opened(twin), config(batch=1))
    together = sample_images(*opened(twin), config(batch=3))
    assert [p.size for p in alone] == [(64, 96)] * 3
    for a, b in zip(alone[2:], together[2:], strict=True):  # shorter ones are padded to the batch's longest
        assert np.abs(pixels(a) - pixels(b)).max() <= 2


@pytest.mark.parametrize("clip_skip", [None, 2])
def test_pictures_are_those_that_diffusers_samples_from_the_export(
    twin: Path, tmp_path: Path, clip_skip: int | None
) -> None:
    pipeline, tokenizer, encoder = opened(twin, clip_skip)
    given = config(prompts=["picture number 3"], negative_prompt="tag 7", seed=3)
    ours = sample_images(pipeline, tokenizer, encoder, given)[0]
    export(pipeline, tmp_path, model=ModelConfig(path="x", clip_skip=clip_skip), steps=1)
    theirs = DiffusionPipeline.from_pretrained(tmp_path)(
        "picture number 3",
        negative_prompt="tag 7",
        num_inference_steps=given.steps,
        guidance_scale=given.guidance,
        guidance_rescale=given.guidance_rescale,
        width=given.width_px,
        height=given.height_px,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(theirs).std() > 1
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_seeds_change_pictures(parts: Parts) -> None:
    first = sample_images(*parts, config(prompts=["tag", "tag"], batch=2))
    again = sample_images(*parts, config(prompts=["tag", "tag"], batch=2))
    other = sample_images(*parts, config(prompts=["tag", "tag"], batch=2, seed=1))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first[1], other[0])


def test_training_mode_is_left_meanwhile_and_nothing_is_drawn_from_the_global_generator(tiny_sdxl: Path) -> None:
    pipeline, tokenizer, encoder = opened(tiny_sdxl)
    parts = [pipeline.unet, *encoder.encoders]
    for part, training in zip(parts, (True, False, True), strict=True):
        part.train(training)
    sampled: list[bool] = []
    for part in parts:
        part.register_forward_pre_hook(lambda module, given: sampled.append(module.training))
    before = torch.get_rng_state()
    sample_grid(pipeline, tokenizer, encoder, config(), torch.autocast("cpu", enabled=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(sampled) == {False}
    assert [part.training for part in parts] == [True, False, True]


def test_the_vae_decodes_in_its_own_precision(parts: Parts) -> None:
    seen: list[torch.dtype] = []
    pipeline, tokenizer, encoder = parts
    pipeline.unet.conv_out.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    pipeline.vae.decoder.conv_out.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    sample_grid(pipeline, tokenizer, encoder, config(prompts=["tag"]), torch.autocast("cpu", torch.bfloat16))
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_a_grid_shows_every_picture_with_room_for_its_caption(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (200, 200, 0)]
    pictures = [Image.new("RGB", (64, 48), colour) for colour in colours]
    grid = captioned_grid(pictures, ["<b>one</b>", "two " * 80, "", "四", "five"])
    assert {colour for _, colour in grid.getcolors(2**20)} >= set(colours)
    path = save_grid(grid, tmp_path / "samples", 500)
    assert path.name == "step-00000500.png"
    assert Image.open(path).size == grid.size
