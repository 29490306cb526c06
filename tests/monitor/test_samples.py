"""Sample grids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.checkpoint.export import build_pipeline
from finetune.diffusion.config import DiffusionConfig
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.monitor.config import SamplesConfig
from finetune.monitor.samples import captioned_grid, sample_grid, sample_images, save_grid


@pytest.fixture
def parts(tiny_model: Path):  # type: ignore[no-untyped-def]
    components = load_components(ModelConfig(path=str(tiny_model)))
    pipeline = build_pipeline(
        components.unet, components.vae, components.text_encoder, components.tokenizer, DiffusionConfig()
    )
    return pipeline, PromptTokenizer(components.tokenizer, 225)


def config(**changes: object) -> SamplesConfig:
    prompts = ["tag", "picture number 3", " ".join(["picture"] * 100)]
    return SamplesConfig(**{"prompts": prompts, "steps": 2, "width_px": 64, "height_px": 96, **changes})  # type: ignore[arg-type]


def test_pictures_do_not_depend_on_the_batch(parts) -> None:  # type: ignore[no-untyped-def]
    alone = sample_images(*parts, 2, config(batch=1))
    together = sample_images(*parts, 2, config(batch=3))
    assert [p.size for p in alone] == [(64, 96)] * 3
    for a, b in zip(alone[2:], together[2:], strict=True):  # shorter ones are padded to the batch's longest
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 2


def test_seeds_change_pictures(parts) -> None:  # type: ignore[no-untyped-def]
    first = sample_images(*parts, 1, config(prompts=["tag", "tag"], batch=2))
    again = sample_images(*parts, 1, config(prompts=["tag", "tag"], batch=2))
    other = sample_images(*parts, 1, config(prompts=["tag", "tag"], batch=2, seed=1))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first[1], other[0])


def test_training_mode_comes_back_and_nothing_is_drawn_from_the_global_generator(parts) -> None:  # type: ignore[no-untyped-def]
    pipeline, tokenizer = parts
    pipeline.unet.train()
    pipeline.text_encoder.eval()
    before = torch.get_rng_state()
    sample_grid(pipeline, tokenizer, 1, config(), torch.autocast("cpu", enabled=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert pipeline.unet.training
    assert not pipeline.text_encoder.training


def test_a_grid_shows_every_picture_with_room_for_its_caption(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (200, 200, 0)]
    pictures = [Image.new("RGB", (64, 48), colour) for colour in colours]
    grid = captioned_grid(pictures, ["<b>one</b>", "two " * 80, "", "四", "five"])
    assert {colour for _, colour in grid.getcolors(2**20)} >= set(colours)
    path = save_grid(grid, tmp_path / "samples", 500)
    assert path.name == "step-00000500.png"
    assert Image.open(path).size == grid.size
