"""What a recipe says about the model."""

from dataclasses import dataclass

from omegaconf import MISSING

from finetune.checks import check_choice
from finetune.errors import UserError

ATTENTION = ("sdpa", "xformers")
JOIN_CHUNKS = ("trim", "keep")
PAD_CHUNKS = ("needed", "longest")
CHECKPOINTING = ("none", "all", "auto")
CHUNK_TOKENS = 75
"""Prompt tokens that CLIP reads at a time, beside the one that begins and the one that ends them."""


@dataclass
class ModelConfig:
    """The model to finetune: SD1.5, SD2 or SDXL, which is told from its parts."""

    path: str = MISSING
    """Folder in diffusers' layout, a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5, or one `.safetensors`
    file in the original layout."""
    config: str | None = None
    """Folder or hub id in diffusers' layout from which a single file takes its configuration and tokenizer; None takes
    what was published for its family."""
    clip_skip: int | None = None
    """Which of the text encoder's layers conditions the UNet, counted from the last, which is 1 (as webui counts); None
    is as the family was trained: 1, and 2 for SDXL."""
    max_tokens: int = 225
    """Longest prompt in tokens, a multiple of 75; what goes beyond is cut."""
    join_chunks: str = "trim"
    """How a prompt's chunks of 75 tokens are joined: trim drops the beginnings and ends between them (75n + 2 states,
    as kohya's scripts train), keep keeps them (77n, as webui samples)."""
    pad_chunks: str = "needed"
    """needed: as many chunks as the longest prompt of the micro-batch has; longest: always those of max_tokens."""
    gradient_checkpointing: str = "none"
    """Which blocks compute their activations again in the backward pass: none; all, for least memory and about a third
    more time; auto, on a GPU as few as its memory needs, see memory.md."""
    vae_slicing: bool = False
    """Encode the pictures of a micro-batch one at a time: less memory, slower. Not needed with latents made before."""
    attention: str = "sdpa"
    """sdpa (torch) or xformers (needs a GPU and the `gpu` extra)."""
    compile: bool = False
    """Compile the blocks of the UNet and of the VAE's encoder (torch.compile): faster steps after minutes of compiling
    at the start, which a cache on the disk makes short when the run is started again."""
    compile_buckets: int = 8
    """With compile: so many buckets, those with the most micro-batches in a phase, are compiled for. The others train
    without it."""

    def __post_init__(self) -> None:
        if self.config is not None and not self.is_single_file:
            raise UserError(
                f"model.config is {self.config} but model.path {self.path} has its own configuration: "
                "leave out model.config, or give one .safetensors file"
            )
        if self.clip_skip is not None and self.clip_skip < 1:
            raise UserError(f"model.clip_skip is {self.clip_skip}: use 1 (the last layer) or more")
        if self.max_tokens < CHUNK_TOKENS or self.max_tokens % CHUNK_TOKENS:
            raise UserError(f"model.max_tokens is {self.max_tokens}: use a positive multiple of {CHUNK_TOKENS}")
        if self.compile_buckets < 1:
            raise UserError(f"model.compile_buckets is {self.compile_buckets}: use 1 or more, or model.compile=false")
        check_choice("model.join_chunks", self.join_chunks, JOIN_CHUNKS)
        check_choice("model.pad_chunks", self.pad_chunks, PAD_CHUNKS)
        if self.gradient_checkpointing.lower() in ("true", "false"):
            raise UserError(
                f"model.gradient_checkpointing is {self.gradient_checkpointing.lower()}: write all where it was true, "
                "none where it was false, or auto"
            )
        check_choice("model.gradient_checkpointing", self.gradient_checkpointing, CHECKPOINTING)
        check_choice("model.attention", self.attention, ATTENTION)

    @property
    def is_single_file(self) -> bool:
        """Whether all weights lie in one `.safetensors` file."""
        return self.path.endswith(".safetensors")

    def clip_skip_of(self, text_encoders: int) -> int:
        """Clip skip for a family with this many text encoders; SDXL, which has two, was trained with 2."""
        return self.clip_skip or (1 if text_encoders == 1 else 2)
