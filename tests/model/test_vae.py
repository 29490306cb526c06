"""Latents: drawn at once, or from moments that were kept."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from finetune.data.latents import DTYPES
from finetune.model.config import ModelConfig
from finetune.model.families import load_one
from finetune.model.vae import draw_latents, encode_pixels, encoder_hash, pixel_moments, vae_factor

UNIT_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half the distance between neighbouring numbers, relative to these (IEEE 754)."""
SMALLEST = 2.0**-25
"""Half the distance between neighbouring numbers of fp16 near 0."""


def loaded(folder: Path) -> AutoencoderKL:
    vae = load_one(ModelConfig(path=str(folder)), "vae", torch.float32)
    assert isinstance(vae, AutoencoderKL)
    return vae.eval()


def given(seed: int = 0) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return pixels, torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(seed + 1))


@torch.no_grad()
def test_latents_are_drawn_with_the_noise_that_is_given(twin: Path, tiny_sdxl: Path) -> None:
    vae = loaded(twin)
    assert vae_factor(vae) == 8
    pixels, noise = given()
    latents = encode_pixels(vae, pixels, noise)
    posterior = vae.encode(pixels / 127.5 - 1.0).latent_dist
    mean = encode_pixels(vae, pixels, torch.zeros_like(noise))
    scale = 0.13025 if twin == tiny_sdxl else 0.18215  # as published
    assert torch.allclose(mean, posterior.mean * scale, atol=1e-5)
    assert torch.allclose(latents - mean, posterior.std * noise * scale, atol=1e-5)


def test_in_two_stages_it_is_the_same_bit_by_bit(twin: Path) -> None:
    vae, (pixels, noise) = loaded(twin), given()
    moments = pixel_moments(vae, pixels)
    assert moments.shape == (2, 8, 8, 12)
    assert torch.equal(draw_latents(vae, moments, noise), encode_pixels(vae, pixels, noise))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_moments_move_latents_by_no_more_than_rounding_can(twin: Path, dtype: str) -> None:
    """mean·(1 + u) + noise·exp((logvar ± u·|logvar|) / 2), times the scale: what rounding to unit roundoff u allows."""
    vae, (pixels, noise) = loaded(twin), given()
    moments = pixel_moments(vae, pixels)
    mean, logarithm = moments.chunk(2, dim=1)
    u = UNIT_ROUNDOFF[dtype]
    deviation = (logarithm / 2).exp() * noise.abs()
    bound = mean.abs() * u + SMALLEST + deviation * torch.expm1((logarithm.abs() * u + SMALLEST) / 2)
    moved = draw_latents(vae, moments.to(DTYPES[dtype]), noise) - encode_pixels(vae, pixels, noise)
    assert (moved.abs() <= vae.config.scaling_factor * bound * 1.001 + 1e-6).all()
    assert moved.abs().max() > 0


def test_a_variance_beyond_all_bounds_is_cut_as_diffusers_does(tiny_sd15: Path) -> None:
    vae, noise = loaded(tiny_sd15), torch.ones(1, 4, 1, 1)
    for logarithm, cut in ((-1000.0, -30.0), (1000.0, 20.0)):
        moments = torch.cat([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), logarithm)], dim=1).half()
        expected = torch.full_like(noise, cut / 2).exp() * vae.config.scaling_factor
        assert torch.allclose(draw_latents(vae, moments, noise), expected, rtol=1e-6)


def test_an_encoder_is_told_by_what_encodes(tiny_sd15: Path) -> None:
    same, other, settings = (loaded(tiny_sd15) for _ in range(3))
    expected = encoder_hash(same)
    with torch.no_grad():
        same.decoder.conv_in.weight.add_(1.0)
        other.encoder.conv_in.weight.view(-1)[0].add_(1e-3)
    same.register_to_config(scaling_factor=0.5)
    settings.register_to_config(norm_num_groups=settings.config.norm_num_groups + 1)
    assert encoder_hash(same) == expected
    assert encoder_hash(other) != expected
    assert encoder_hash(settings) != expected


@torch.no_grad()
def test_encoding_picture_by_picture_differs_by_rounding_alone(twin: Path) -> None:
    vae, (pixels, _) = loaded(twin), given()
    whole = pixel_moments(vae, pixels)
    vae.enable_slicing()
    asked: list[int] = []
    hook = vae.encoder.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    sliced = pixel_moments(vae, pixels)
    hook.remove()
    assert asked == [1, 1]
    assert torch.allclose(sliced, whole, rtol=0.0, atol=1e-5 * whole.abs().max().item())
