"""Models of the published sizes with random weights, as folders that a run can load, and the arithmetic of their
parts."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data_tools.demo.tiny_model import train_tokenizer
from finetune.checkpoint.export import build_pipeline
from finetune.diffusion.config import DiffusionConfig
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_skeleton
from finetune.model.text import PromptEncoder
from finetune.monitor.flops import counted
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
        self._trainee = Trainee(self._skeleton)
        self._known: dict[int, Work] = {}

    def work(self, side: int) -> Work:
        """Of a square picture with so many pixels a side."""
        if side not in self._known:
            parts = self._skeleton
            size = {"channels": parts.latent_channels, "side": side // parts.vae_factor}
            encoders = len(parts.text_encoders)
            once, twice = (
                float(counted(self._trainee, **size, encoders=encoders, chunks=1, encoded=encoded))
                for encoded in (1, 2)
            )
            self._known[side] = Work(2 * once - twice, twice - once, encoding_flops(parts.vae, side))
        return self._known[side]


def encoding_flops(vae: AutoencoderKL, side: int) -> float:
    """Of a VAE on the meta device that encodes a square picture with so many pixels a side."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(torch.zeros(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())
