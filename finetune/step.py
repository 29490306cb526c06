"""One micro-batch: pixels -> latents -> noise -> prediction -> loss."""

from contextlib import nullcontext

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from finetune.data.loader import Batch, Chunks, LatentShape
from finetune.diffusion.objective import Losses, Objective
from finetune.model.assemble import encode_pixels


class TrainingStep:
    """The loss of a micro-batch, under the precision that the strategy trains in."""

    def __init__(self, trainee: nn.Module, vae: AutoencoderKL, objective: Objective, autocast: torch.autocast) -> None:
        self._trainee = trainee
        self._vae = vae
        self._objective = objective
        self._autocast = autocast
        # In fp16 the activations of SDXL's VAE overflow.
        self._encoding = nullcontext() if autocast.fast_dtype == torch.float16 else autocast

    def loss(self, batch: Batch) -> Losses:
        """What a micro-batch costs whose tensors lie on the model's device."""
        latents, noise = self._latents_and_noise(batch)
        model_input = self._objective.model_input(latents, noise, batch.perturbation, batch.timesteps)
        target = self._objective.target(latents, noise, batch.timesteps)
        prediction = self._predict(model_input, batch)
        return self._objective.loss(prediction, target, batch.timesteps, batch.mask, batch.loss_weights)

    def errors(self, batch: Batch) -> Tensor:
        """Every sample's loss without any weight and without input perturbation, for validation: float32 [m]."""
        latents, noise = self._latents_and_noise(batch)
        target = self._objective.target(latents, noise, batch.timesteps)
        prediction = self._predict(self._objective.add_noise(latents, noise, batch.timesteps), batch)
        return self._objective.errors(prediction, target, batch.timesteps, batch.mask)

    def _latents_and_noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self._encoding:
            latents = encode_pixels(self._vae, batch.pixels, batch.posterior_noise)
        return latents, self._objective.offset_noise(latents, batch.noise, batch.offset)

    def _predict(self, model_input: Tensor, batch: Batch) -> Tensor:
        with self._autocast:
            prediction: Tensor = self._trainee(
                model_input, batch.timesteps, batch.input_ids, batch.chunk_rows, batch.size_and_crop
            )
        return prediction


def trial_batch(chunks: Chunks, width: int, height: int, latents: LatentShape) -> Batch:
    """A grey micro-batch of `width`×`height` pixels with the prompts given; for trying out whether it fits."""
    size = len(chunks.chunk_rows)
    channels, *latent_size = latents.of(width, height)
    noise = torch.zeros(size, channels, *latent_size)
    return Batch(
        pixels=torch.full((size, 3, height, width), 127, dtype=torch.uint8),
        **chunks._asdict(),
        size_and_crop=torch.tensor([[height, width, 0, 0, height, width]]).expand(size, -1),
        loss_weights=torch.ones(size),
        mask=torch.ones(size, 1, *latent_size),
        timesteps=torch.zeros(size, dtype=torch.int64),
        noise=noise,
        offset=torch.zeros(size, channels, 1, 1),
        perturbation=noise,
        posterior_noise=noise,
        bad=[],
        facts=[],
    )
