"""What trains, as one module: DeepSpeed wraps a single model, and one forward pass needs all of it."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from finetune.model.families import Components
from finetune.model.text import encode, freeze_unused_layers


class Trainee(nn.Module):
    """UNet and text encoder: noised latents and token ids in, the UNet's prediction out."""

    def __init__(self, components: Components, clip_skip: int, train_text_encoder: bool) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = components.unet.train()
        self.text_encoder: CLIPTextModel = components.text_encoder.train(train_text_encoder)
        self.clip_skip = clip_skip
        self.text_encoder.requires_grad_(train_text_encoder)
        freeze_unused_layers(self.text_encoder, clip_skip)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that train, by the group whose learning rate they follow; empty groups are left out."""
        groups = {
            name: [p for p in part.parameters() if p.requires_grad]
            for name, part in (("unet", self.unet), ("text_encoder", self.text_encoder))
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def forward(self, latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """Predict from noised latents [B, C, h, w], timesteps int64 [B] and token ids int64 [B, chunks, 77]."""
        conditioning = encode(self.text_encoder, input_ids, self.clip_skip)
        prediction: Tensor = self.unet(latents, timesteps, encoder_hidden_states=conditioning).sample
        return prediction


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Draw scaled latents from the VAE's posterior with the noise given.

    Args:
        pixels: uint8 [B, 3, H, W].
        noise: standard normal [B, C, H/f, W/f], f the VAE's factor.
    """
    images = pixels.contiguous().float() / 127.5 - 1.0
    posterior = vae.encode(images).latent_dist
    latents: Tensor = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    return latents
