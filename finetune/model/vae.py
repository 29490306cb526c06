"""From pixels to latents, at once or in two stages: the posterior's moments, which can be kept, and draws from them."""

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

ENCODING = ("encoder.", "quant_conv.")
"""What the names of the weights that encode begin with."""
ENCODING_SETTINGS = (
    *("in_channels", "latent_channels", "down_block_types", "block_out_channels", "layers_per_block", "act_fn"),
    *("norm_num_groups", "mid_block_add_attention", "use_quant_conv"),
)


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Draw scaled latents from the VAE's posterior with the noise given.

    Args:
        pixels: uint8 [B, 3, H, W].
        noise: standard normal [B, C, H/f, W/f], f the VAE's factor.
    """
    return _drawn(vae, pixel_moments(vae, pixels), noise)


@torch.no_grad()
def pixel_moments(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Mean and logarithm of the variance of the posterior: [B, 2C, H/f, W/f]; `pixels` as for `encode_pixels`."""
    images = pixels.contiguous().float() / 127.5 - 1.0
    moments: Tensor = vae.encode(images).latent_dist.parameters
    return moments


@torch.no_grad()
def draw_latents(vae: AutoencoderKL, moments: Tensor, noise: Tensor) -> Tensor:
    """Draw scaled latents from a posterior of which the moments were kept, in float32.

    Args:
        moments: as `pixel_moments` gives them, rounded to some type.
        noise: standard normal [B, C, H/f, W/f].
    """
    return _drawn(vae, moments.float(), noise)


def _drawn(vae: AutoencoderKL, moments: Tensor, noise: Tensor) -> Tensor:
    # It clamps the logarithm of the variance to [-30, 20].
    posterior = DiagonalGaussianDistribution(moments)
    latents: Tensor = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    return latents


def encoding_precision(autocast: torch.autocast) -> AbstractContextManager[Any]:
    """The precision in which pictures are encoded beside a model's own: in fp16 the activations of SDXL's VAE
    overflow."""
    return nullcontext() if autocast.fast_dtype == torch.float16 else autocast


def vae_factor(vae: AutoencoderKL) -> int:
    """How many pixels one latent spans on each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encoder_hash(vae: AutoencoderKL) -> str:
    """SHA-256 of all that decides on the moments: the weights that encode, by their names in float32, and their
    settings. What decodes may differ."""
    digest = hashlib.sha256(json.dumps({name: vae.config[name] for name in ENCODING_SETTINGS}).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(ENCODING):
            digest.update(f"{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
