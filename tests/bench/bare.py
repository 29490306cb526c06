"""The plain loop that ours is measured against."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from finetune.data.batch import Batch
from finetune.diffusion.config import DiffusionConfig
from finetune.model.families import Components

MAX_GRAD_NORM = 1.0


class BareLoop:
    """What diffusers' example train_text_to_image.py does in a step of SD1.5, with the text encoder trained as well:
    weights in fp32, bf16 by autocast on a GPU and a VAE in bf16 there, SDPA, nothing compiled, and the loss of every
    micro-batch asked for. Data, checks, saving and watching are left out."""

    def __init__(self, components: Components, device: torch.device, *, bf16: bool) -> None:
        """Move the model to the device.

        Args:
            bf16: or else all is fp32.
        """
        self._unet = components.unet.to(device).train()
        (encoder,) = components.prompt_encoder.encoders
        self._text_encoder = encoder.to(device).train()
        self._vae_dtype = torch.bfloat16 if bf16 else torch.float32
        self._vae = components.vae.to(device, self._vae_dtype).requires_grad_(False)
        self.parameters = [*self._unet.parameters(), *self._text_encoder.parameters()]
        self._device = device
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
        self._scheduler = DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=DiffusionConfig.beta_start,
            beta_end=DiffusionConfig.beta_end,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        )

    def step(self, batches: Sequence[Batch], optimizer: Optimizer) -> float:
        """A step of some micro-batches; their mean loss."""
        total = 0.0
        for batch in batches:
            loss = self.loss(batch.to(self._device))
            (loss / len(batches)).backward()
            total += loss.item()
        clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return total / len(batches)

    def loss(self, batch: Batch) -> Tensor:
        """Of a micro-batch of pictures on the device whose prompts have one chunk."""
        assert batch.pixels is not None
        pixels = batch.pixels.to(self._vae_dtype) / 127.5 - 1.0
        with torch.no_grad():
            posterior = self._vae.encode(pixels).latent_dist
        latents = (posterior.mean + posterior.std * batch.posterior_noise) * self._vae.config.scaling_factor
        noisy = self._scheduler.add_noise(latents, batch.noise, batch.timesteps)
        target = self._scheduler.get_velocity(latents, batch.noise, batch.timesteps)
        with self._autocast:
            states = self._text_encoder(batch.input_ids[:, 0]).last_hidden_state
            prediction = self._unet(noisy, batch.timesteps, encoder_hidden_states=states).sample
        return mse_loss(prediction.float(), target.float())
