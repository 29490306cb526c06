"""Models of the published sizes with random weights, as folders that a run can load, and the arithmetic of their
parts."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data_tools.demo.tiny_model import train_tokenizer
from finetune.checkpoint.export import build_pipeline
from finetune.data.loader import LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.model.assemble import Trainee
from finetune.model.config import CHUNK_TOKENS, ModelConfig
from finetune.model.families import Components, load_skeleton
from finetune.model.text import PromptEncoder
from finetune.monitor.flops import ModelFlops
from finetune.monitor.intervals import Shape
from tests.bench.pictures import WORDS
from tests.model.published import full_size


def save_random(family: str, folder: Path, device: torch.device) -> None:
    """Save SD1.5 (sd15) or SDXL (sdxl) with random weights in fp16, made on a device."""
    generator = torch.Generator(device).manual_seed(0)
    parts = full_size(family)
    for part in parts.values():
        fill(part.to_empty(device=device).half(), generator)
    tokenizer = train_tokenizer(WORDS * 100, folder.with_name(f"{folder.name}-words"))
    encoders = [part for name, part in parts.items() if name.startswith("text_encoder")]
    prompt_encoder = PromptEncoder(encoders, len(encoders), "trim")
    components = Components(parts["unet"], parts["vae"], prompt_encoder, (tokenizer,) * len(encoders))
    build_pipeline(components, DiffusionConfig()).save_pretrained(folder)


@torch.no_grad()
def fill(part: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what goes through them: normal, divided by the square root of the inputs; norms
    that change nothing."""
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


class Work(NamedTuple):
    """FLOPs of a sample with one chunk of prompt."""

    unet: float
    """Forward and backward, like the text encoders'."""
    text: float
    vae: float
    """Of encoding a picture."""

    @property
    def trained(self) -> float:
        """What counts for the utilisation: what has a backward pass."""
        return self.unet + self.text


class Counter:
    """Counts the arithmetic of a model of which all is trained, on the meta device."""

    def __init__(self, config: ModelConfig) -> None:
        self._skeleton = load_skeleton(config)
        self._latents = LatentShape(self._skeleton.latent_channels, self._skeleton.vae_factor)
        self._all = ModelFlops(config, Trainee(self._skeleton).trainable, self._latents)

    def work(self, side: int) -> Work:
        """Of a square picture with so many pixels a side."""
        text = float(self._text())
        return Work(self._all(Shape(side, side, 1)) - text, text, float(self._vae(side)))

    def _text(self) -> int:
        prompt_encoder = self._skeleton.prompt_encoder
        ids = torch.zeros(1, CHUNK_TOKENS + 2, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter:
            for encoder in prompt_encoder.encoders:
                output = encoder(ids, output_hidden_states=True)
                read = output.hidden_states[-prompt_encoder.clip_skip].sum()
                pooled = output.text_embeds.sum() if encoder is not prompt_encoder.encoders[0] else 0.0
                (read + pooled).backward()
        return int(counter.get_total_flops())

    def _vae(self, side: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._skeleton.vae.encode(torch.zeros(1, 3, side, side, device="meta"))
        return int(counter.get_total_flops())
