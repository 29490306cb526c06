"""Samplers of tiny models, and what they are asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from finetune.checkpoint.export import build_pipeline
from finetune.diffusion.config import DiffusionConfig
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.monitor.samples.config import Picture, Prompt
from finetune.monitor.samples.sampling import Sampler


def opened(folder: Path, clip_skip: int | None = None, dtype: torch.dtype | None = None, **diffusion: Any) -> Sampler:
    """A model that has not been trained."""
    components = load_components(ModelConfig(path=str(folder), clip_skip=clip_skip))
    pipeline = build_pipeline(components, DiffusionConfig(**diffusion))
    tokenizer = PromptTokenizer(components.tokenizers, 225)
    autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
    return Sampler(pipeline, tokenizer, components.prompt_encoder, autocast)


def wanted(
    text: str = "tag", seed: int = 0, negative: str = "", height: int = 96, guidance: float = 7.0, steps: int = 2
) -> Picture:
    """A picture of 64 px width."""
    return Picture(Prompt(text, seed, negative), 64, height, guidance, 0.7, steps)


def pixels(picture: Image.Image) -> npt.NDArray[np.int64]:
    """Numbers that can be subtracted."""
    return np.asarray(picture).astype(np.int64)
