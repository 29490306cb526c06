"""Loading a model's parts from a diffusers folder, the hub or a single file. Weights are read from safetensors only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from finetune.errors import UserError
from finetune.model.checkpointing import blocks, checkpoint_blocks
from finetune.model.config import ModelConfig
from finetune.model.parts import layout, load_module
from finetune.model.single_file import empty_parts, load_single_file
from finetune.model.text import PromptEncoder, load_tokenizers
from finetune.model.vae import vae_factor

TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
PARTS: Mapping[str, type[nn.Module]] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **TEXT_ENCODERS}


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
        return vae_factor(self.vae)

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
        names = ["unet", "vae", *list(TEXT_ENCODERS)[: len(tokenizers)]]
        modules = {name: _load_from_folder(config, name, torch.float32) for name in names}
    components = _assembled(config, modules, tokenizers)
    _check(config, components)
    _prepare(config, components)
    return components


def load_skeleton(config: ModelConfig) -> Components:
    """The parts without their weights, on the meta device. Raises UserError where the model has no configuration."""
    return _assembled(config, empty_parts(layout(config)), load_tokenizers(config))


def load_one(config: ModelConfig, name: str, dtype: torch.dtype) -> nn.Module:
    """One part alone, by its name in diffusers' layout, with weights of another type. Raises UserError where it cannot
    be loaded."""
    if config.is_single_file:
        return load_single_file(Path(config.path).expanduser(), layout(config), [name], dtype)[name]
    return _load_from_folder(config, name, dtype)


def _load_from_folder(config: ModelConfig, name: str, dtype: torch.dtype) -> nn.Module:
    # Unlike diffusers, transformers would keep the precision that was saved.
    option = "dtype" if name in TEXT_ENCODERS else "torch_dtype"
    return load_module(PARTS[name], config, name, **{option: dtype})


def _assembled(
    config: ModelConfig, modules: Mapping[str, nn.Module], tokenizers: tuple[CLIPTokenizer, ...]
) -> Components:
    text_encoders = [modules[name] for name in TEXT_ENCODERS if name in modules]
    prompt_encoder = PromptEncoder(text_encoders, config.clip_skip_of(len(text_encoders)), config.join_chunks)
    return Components(modules["unet"], modules["vae"], prompt_encoder, tokenizers)


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
    if config.gradient_checkpointing == "all":
        for module in (unet, *components.prompt_encoder.encoders):
            checkpoint_blocks(module, blocks(module))
    if config.vae_slicing:
        components.vae.enable_slicing()
    if config.attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UserError(
                "model.attention is xformers, which needs a CUDA GPU and `pip install 'longhaul[gpu]'`: "
                "install it or use model.attention=sdpa"
            ) from error
