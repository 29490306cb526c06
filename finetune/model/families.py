"""Loading a model's parts from a diffusers folder, the hub or a single file. Weights are read from safetensors only."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.parts import layout, load_module
from finetune.model.single_file import load_single_file
from finetune.model.text import PromptEncoder, load_tokenizers

TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


@dataclass(frozen=True)
class Components:
    """The parts of an SD1.5, SD2 or SDXL model, in fp32 on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt_encoder: PromptEncoder
    """The text encoders: one, or SDXL's two."""
    tokenizers: tuple[CLIPTokenizer, ...]
    """One for each text encoder."""

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by their names in diffusers' layout."""
        return dict(zip(TEXT_ENCODERS, self.prompt_encoder.encoders, strict=False))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that has weights, by its name in diffusers' layout."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def vae_factor(self) -> int:
        """How many pixels one latent spans."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.latent_channels)


def load_components(config: ModelConfig) -> Components:
    """All parts, checked against one another.

    Raises:
        UserError: the model cannot be found, has no safetensors weights, or its parts do not fit together.
    """
    tokenizers = load_tokenizers(config)
    if config.is_single_file:
        modules: Mapping[str, nn.Module] = load_single_file(Path(config.path).expanduser(), layout(config))
    else:
        modules = _load_folder(config, len(tokenizers))
    text_encoders = [modules[name] for name in TEXT_ENCODERS if name in modules]
    clip_skip = config.clip_skip_of(len(text_encoders))
    prompt_encoder = PromptEncoder(text_encoders, clip_skip, config.join_chunks)
    components = Components(modules["unet"], modules["vae"], prompt_encoder, tokenizers)
    _check(config, components)
    _prepare(config, components)
    return components


def _load_folder(config: ModelConfig, text_encoders: int) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {
        "unet": load_module(UNet2DConditionModel, config, "unet"),
        "vae": load_module(AutoencoderKL, config, "vae"),
    }
    for name, part in islice(TEXT_ENCODERS.items(), text_encoders):
        # Unlike diffusers, transformers would keep the precision that was saved.
        modules[name] = load_module(part, config, name, dtype=torch.float32)
    return modules


def _check(config: ModelConfig, components: Components) -> None:
    encoders, unet = components.prompt_encoder.encoders, components.unet.config
    width = sum(encoder.config.hidden_size for encoder in encoders)
    if width != unet.cross_attention_dim:
        raise UserError(
            f"model.path {config.path}: its text is {width} wide but its UNet reads {unet.cross_attention_dim}: "
            "use the parts of one model of SD1.5's, SD2's or SDXL's family"
        )
    if unet.in_channels != components.latent_channels:
        raise UserError(
            f"model.path {config.path}: its UNet takes {unet.in_channels} channels but its VAE "
            f"makes {components.latent_channels}: inpainting models and other families are not supported"
        )
    layers = min(encoder.config.num_hidden_layers for encoder in encoders)
    clip_skip = components.prompt_encoder.clip_skip
    if clip_skip > layers:
        raise UserError(f"model.clip_skip is {clip_skip} but the text encoder has {layers} layers: lower it")


def _prepare(config: ModelConfig, components: Components) -> None:
    unet = components.unet
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        for text_encoder in components.prompt_encoder.encoders:
            text_encoder.activation_checkpointing_enable()
    if config.attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UserError(
                "model.attention is xformers, which needs a CUDA GPU and `pip install 'longhaul[gpu]'`: "
                "install it or use model.attention=sdpa"
            ) from error
    if config.compile:
        unet.compile()  # in place: parameters keep their names
