"""Tiny twins of SD1.5, SD2.1-v and SDXL: random weights in the levels and layers of the published models.

Each is saved in a fraction of a second as a diffusers folder; the names of its tensors are those of the real model, up
to the number of a text encoder's layers.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from data_tools.demo.tiny_model import train_tokenizer

TEXT_WIDTH, TEXT_WIDTH_2 = 16, 24
TIME_WIDTH = 8
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TEXTS = [f"picture number {i}, tag {i}" for i in range(100)]


def save_sd15(folder: Path) -> None:
    """SD1.5: CLIP ViT-L's text encoder, heads of one number on all levels, epsilon."""
    with seeded():
        pipeline = StableDiffusionPipeline(
            unet=_unet(cross_attention_dim=TEXT_WIDTH, attention_head_dim=2),
            vae=_vae(0.18215),
            text_encoder=CLIPTextModel(_text_config(TEXT_WIDTH, 3, "quick_gelu")),
            tokenizer=_tokenizer(),
            scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


def save_sd2(folder: Path) -> None:
    """SD2.1-v: OpenCLIP's text encoder, padding with "!", linear projections, a number of heads for each level."""
    with seeded():
        pipeline = StableDiffusionPipeline(
            unet=_unet(cross_attention_dim=TEXT_WIDTH, attention_head_dim=[1, 2, 3, 3], use_linear_projection=True),
            vae=_vae(0.18215),
            text_encoder=CLIPTextModel(_text_config(TEXT_WIDTH, 3, "gelu")),
            tokenizer=_tokenizer(pad="!"),
            scheduler=DDIMScheduler(**BETAS, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


def save_sdxl(folder: Path) -> None:
    """SDXL: three levels, two text encoders, of which the second has a pooled output, and embedded sizes and crops."""
    with seeded():
        pipeline = StableDiffusionXLPipeline(
            unet=_unet(
                block_out_channels=(8, 16, 24),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=[1, 2, 3],
                attention_head_dim=[1, 2, 3],
                use_linear_projection=True,
                cross_attention_dim=TEXT_WIDTH + TEXT_WIDTH_2,
                addition_embed_type="text_time",
                addition_time_embed_dim=TIME_WIDTH,
                projection_class_embeddings_input_dim=6 * TIME_WIDTH + TEXT_WIDTH_2,
            ),
            vae=_vae(0.13025),
            text_encoder=CLIPTextModel(_text_config(TEXT_WIDTH, 3, "quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(TEXT_WIDTH_2, 4, "gelu")),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(pad="!"),
            scheduler=EulerDiscreteScheduler(**BETAS),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)


TWINS: dict[str, Callable[[Path], None]] = {"sd15": save_sd15, "sd2": save_sd2, "sdxl": save_sdxl}


@contextmanager
def seeded() -> Iterator[None]:
    """Layers are initialised from the global generator: inside it starts at 0, outside it is as if untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 24, 24),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 12, 12),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=2,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _text_config(width: int, layers: int, activation: str) -> CLIPTextConfig:
    """With the special tokens' ids of the published configurations, which are not those of the tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(_tokenizer()),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


@cache
def _tokenizer(pad: str | None = None) -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(TEXTS, Path(folder))
        return tokenizer if pad is None else CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)
