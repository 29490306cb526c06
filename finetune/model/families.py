"""Loading a model's parts from a diffusers folder or the hub. Weights are read from safetensors only."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.parts import load_part
from finetune.model.text import load_tokenizer


@dataclass(frozen=True)
class Components:
    """The parts of an SD1.5 model, in fp32 on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

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
    weights = {"use_safetensors": True}
    components = Components(
        unet=load_part(UNet2DConditionModel, config, "unet", **weights),
        vae=load_part(AutoencoderKL, config, "vae", **weights),
        text_encoder=load_part(CLIPTextModel, config, "text_encoder", **weights),
        tokenizer=load_tokenizer(config),
    )
    _check(config, components)
    _prepare(config, components.unet)
    if config.gradient_checkpointing:
        components.text_encoder.activation_checkpointing_enable()
    return components


def _check(config: ModelConfig, components: Components) -> None:
    width = components.text_encoder.config.hidden_size
    expected = components.unet.config.cross_attention_dim
    if width != expected:
        raise UserError(
            f"model.path {config.path}: its text encoder is {width} wide but its UNet reads {expected}: "
            "use parts of one model of SD1.5's family"
        )
    if components.unet.config.in_channels != components.latent_channels:
        raise UserError(
            f"model.path {config.path}: its UNet takes {components.unet.config.in_channels} channels but its VAE "
            f"makes {components.latent_channels}: inpainting models and other families are not supported"
        )
    layers = components.text_encoder.config.num_hidden_layers
    if config.clip_skip > layers:
        raise UserError(f"model.clip_skip is {config.clip_skip} but the text encoder has {layers} layers: lower it")


def _prepare(config: ModelConfig, unet: nn.Module) -> None:
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UserError(
                "model.attention is xformers, which needs a CUDA GPU and `pip install 'longhaul[gpu]'`: "
                "install it or use model.attention=sdpa"
            ) from error
