"""What a recipe says about the model."""

from dataclasses import dataclass

from omegaconf import MISSING

from finetune.checks import check_choice
from finetune.errors import UserError

ATTENTION = ("sdpa", "xformers")
CHUNK_TOKENS = 75
"""Prompt tokens that CLIP reads at a time, beside the one that begins and the one that ends them."""


@dataclass
class ModelConfig:
    """The model to finetune: a diffusers folder, or the name of one on the hub."""

    path: str = MISSING
    """Folder in diffusers' layout, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."""
    clip_skip: int = 1
    """Which of the text encoder's layers conditions the UNet, counted from the last, which is 1 (as webui counts)."""
    max_tokens: int = 225
    """Longest prompt in tokens, a multiple of 75; what goes beyond is cut."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    attention: str = "sdpa"
    """sdpa (torch) or xformers (needs a GPU and the `gpu` extra)."""

    def __post_init__(self) -> None:
        if self.clip_skip < 1:
            raise UserError(f"model.clip_skip is {self.clip_skip}: use 1 (the last layer) or more")
        if self.max_tokens < CHUNK_TOKENS or self.max_tokens % CHUNK_TOKENS:
            raise UserError(f"model.max_tokens is {self.max_tokens}: use a positive multiple of {CHUNK_TOKENS}")
        check_choice("model.attention", self.attention, ATTENTION)
