"""Exports: what others load, and how they sample it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPTextModel

from finetune.checkpoint.export import build_pipeline, export, sampling_scheduler
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.schedule import Schedule
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import encode


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> Path:
    parts = load_components(ModelConfig(path=str(tiny_model)))
    with torch.no_grad():
        for parameter in parts.unet.parameters():
            parameter.add_(0.01)
    pipeline = build_pipeline(parts.unet, parts.vae, parts.text_encoder, parts.tokenizer, DiffusionConfig())
    return export(pipeline, tmp_path / "export", model=ModelConfig(path="x", clip_skip=2), steps=1234)


def test_diffusers_loads_and_samples_it(exported: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(exported)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a picture", guidance_rescale=0.7, generator=generator, **options).images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


def test_the_scheduler_is_the_one_that_was_trained_for(exported: Path) -> None:
    scheduler = DDIMScheduler.from_pretrained(exported, subfolder="scheduler")
    trained = Schedule(DiffusionConfig()).signal.float() ** 2
    assert torch.allclose(scheduler.alphas_cumprod, trained, atol=1e-5)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999  # trailing: sampling starts at pure noise
    assert len(scheduler.timesteps) == 25


def test_one_exact_step_of_the_sampler_finds_the_latents() -> None:
    # With a perfect v at the last timestep, one DDIM step from pure noise lands on the data, up to the first alpha.
    scheduler = sampling_scheduler(DiffusionConfig())
    scheduler.set_timesteps(1)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = scheduler.step(-latents, 999, noise).pred_original_sample
    assert torch.allclose(found, latents, atol=1e-5)


def test_trained_weights_are_what_is_written(exported: Path, tiny_model: Path) -> None:
    before = load_components(ModelConfig(path=str(tiny_model))).unet.state_dict()
    after = load_components(ModelConfig(path=str(exported))).unet.state_dict()
    assert all(torch.allclose(after[name], before[name] + 0.01) for name in before)


def test_the_text_encoder_has_the_names_that_other_programs_expect(exported: Path) -> None:
    with safe_open(exported / "text_encoder" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names


def test_the_text_encoder_gives_by_default_what_clip_skip_trained(exported: Path, tiny_model: Path) -> None:
    whole = CLIPTextModel.from_pretrained(tiny_model, subfolder="text_encoder").eval()
    cut = CLIPTextModel.from_pretrained(exported, subfolder="text_encoder").eval()
    ids = torch.arange(77)[None] % 50
    assert torch.allclose(cut(ids).last_hidden_state, encode(whole, ids[None], clip_skip=2), atol=1e-6)
    assert cut.config.num_hidden_layers == whole.config.num_hidden_layers - 1


def test_nothing_is_pickled_and_the_card_says_how_to_sample(exported: Path) -> None:
    assert not [*exported.rglob("*.bin"), *exported.rglob("*.pt"), *exported.rglob("*.ckpt")]
    card = (exported / "README.md").read_text()
    assert "1,234 optimizer steps" in card
    assert "Trained with clip skip 2" in card
    assert "zero terminal SNR" in card
