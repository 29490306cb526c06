"""What trains, and latents with noise that is given."""

from pathlib import Path

import pytest
import torch

from finetune.model.assemble import Trainee, encode_pixels
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components


@pytest.fixture
def components(tiny_model: Path) -> Components:
    return load_components(ModelConfig(path=str(tiny_model)))


def test_groups_hold_every_parameter_that_trains_once(components: Components) -> None:
    groups = Trainee(components, clip_skip=2, train_text_encoder=True).parameter_groups()
    assert list(groups) == ["unet", "text_encoder"]
    every = [p for parameters in groups.values() for p in parameters]
    assert len({id(p) for p in every}) == len(every)
    assert all(p.requires_grad for p in every)


def test_a_frozen_text_encoder_has_no_group(components: Components) -> None:
    trainee = Trainee(components, clip_skip=1, train_text_encoder=False)
    assert list(trainee.parameter_groups()) == ["unet"]
    assert not trainee.text_encoder.training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_of_a_group_gets_a_gradient(tiny_model: Path, checkpointing: bool) -> None:
    components = load_components(ModelConfig(path=str(tiny_model), clip_skip=2, gradient_checkpointing=checkpointing))
    trainee = Trainee(components, clip_skip=2, train_text_encoder=True)
    ids = torch.full((2, 2, 77), components.tokenizer.eos_token_id)
    prediction = trainee(torch.randn(2, 4, 12, 8), torch.tensor([3, 500]), ids)
    assert prediction.shape == (2, 4, 12, 8)
    prediction.square().mean().backward()
    for name, parameters in trainee.parameter_groups().items():
        assert all(p.grad is not None for p in parameters), name


def test_latents_are_drawn_with_the_noise_that_is_given(components: Components) -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    latents = encode_pixels(components.vae, pixels, noise)
    posterior = components.vae.encode(pixels / 127.5 - 1.0).latent_dist
    mean = encode_pixels(components.vae, pixels, torch.zeros_like(noise))
    scale = components.vae.config.scaling_factor
    assert torch.allclose(mean, posterior.mean * scale, atol=1e-5)
    assert torch.allclose(latents - mean, posterior.std * noise * scale, atol=1e-5)
