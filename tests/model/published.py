"""The published models on the meta device: names and shapes without memory."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FAMILIES = ("sd15", "sd2", "sdxl")


def text_encoder(kind: type[nn.Module], width: int, layers: int, activation: str) -> nn.Module:
    return kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=width,
            hidden_act=activation,
        )
    )


def full_size(family: str) -> dict[str, nn.Module]:
    """The parts of SD1.5, SD2.1 or SDXL base 1.0."""
    unets = {
        "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        "sdxl": {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    }
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**unets[family]),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
            "text_encoder": (
                text_encoder(CLIPTextModel, 1024, 23, "gelu")
                if family == "sd2"
                else text_encoder(CLIPTextModel, 768, 12, "quick_gelu")
            ),
        }
        if family == "sdxl":
            parts["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection, 1280, 32, "gelu")
    return parts
