"""One micro-batch: pixels -> latents -> noise -> prediction -> loss."""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from finetune.data.batch import Batch, Chunks, LatentShape
from finetune.diffusion.objective import Losses, Objective
from finetune.model.vae import draw_latents, encode_pixels, encoding_precision


class Prepared(NamedTuple):
    """What the forward pass of a micro-batch and its loss need, on the model's device."""

    model_input: Tensor
    """Noised latents: float32 [m, C, h, w]"""
    target: Tensor
    """What the model is to predict: float32 [m, C, h, w]"""
    timesteps: Tensor
    """These and all that follows as `Batch` has them."""
    input_ids: Tensor
    chunk_rows: Tensor
    size_and_crop: Tensor
    mask: Tensor
    loss_weights: Tensor


class TrainingStep:
    """The loss of a micro-batch, under the precision that the strategy trains in."""

    def __init__(self, trainee: nn.Module, vae: AutoencoderKL, objective: Objective, autocast: torch.autocast) -> None:
        self._trainee = trainee
        self._vae = vae
        self._objective = objective
        self._autocast = autocast
        self._encoding = encoding_precision(autocast)
        self._device = objective.signal.device
        self._beside = (
            torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )

    def prepare(self, batch: Batch) -> Prepared:
        """Copy a micro-batch to the device, encode and noise it. Nothing of that depends on what trains: a GPU does it
        on a stream of its own, beside the passes of micro-batches before it that it still works at."""
        if self._beside is None:
            return self._prepared(batch)
        with torch.cuda.stream(self._beside):
            prepared = self._prepared(batch)
        present = torch.cuda.current_stream(self._device)
        present.wait_stream(self._beside)
        for tensor in prepared:
            tensor.record_stream(present)  # or its memory would be given away while the passes still read it
        return prepared

    def loss(self, prepared: Prepared) -> Losses:
        """What a micro-batch costs."""
        prediction = self._predict(prepared.model_input, prepared)
        return self._objective.loss(
            prediction, prepared.target, prepared.timesteps, prepared.mask, prepared.loss_weights
        )

    def errors(self, batch: Batch) -> Tensor:
        """Every sample's loss without any weight and without input perturbation, for validation: float32 [m]."""
        batch = batch.to(self._device)
        latents, noise = self._latents_and_noise(batch)
        target = self._objective.target(latents, noise, batch.timesteps)
        prediction = self._predict(self._objective.add_noise(latents, noise, batch.timesteps), batch)
        return self._objective.errors(prediction, target, batch.timesteps, batch.mask)

    @torch.no_grad()
    def _prepared(self, batch: Batch) -> Prepared:
        batch = batch.to(self._device)
        latents, noise = self._latents_and_noise(batch)
        return Prepared(
            self._objective.model_input(latents, noise, batch.perturbation, batch.timesteps),
            self._objective.target(latents, noise, batch.timesteps),
            batch.timesteps,
            batch.input_ids,
            batch.chunk_rows,
            batch.size_and_crop,
            batch.mask,
            batch.loss_weights,
        )

    def _latents_and_noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        latents = self._latents(batch)
        return latents, self._objective.offset_noise(latents, batch.noise, batch.offset)

    def _latents(self, batch: Batch) -> Tensor:
        if batch.moments is not None:
            return draw_latents(self._vae, batch.moments, batch.posterior_noise)
        assert batch.pixels is not None
        with self._encoding:
            return encode_pixels(self._vae, batch.pixels, batch.posterior_noise)

    def _predict(self, model_input: Tensor, given: Batch | Prepared) -> Tensor:
        with self._autocast:
            prediction: Tensor = self._trainee(
                model_input, given.timesteps, given.input_ids, given.chunk_rows, given.size_and_crop
            )
        return prediction


def trial_batch(chunks: Chunks, width: int, height: int, latents: LatentShape, *, encoded: bool = False) -> Batch:
    """A micro-batch of `width`×`height` pixels with the prompts given; for trying out whether it fits.

    Args:
        encoded: whether it has moments in place of grey pixels.
    """
    size = len(chunks.chunk_rows)
    channels, *latent_size = latents.of(width, height)
    noise = torch.zeros(size, channels, *latent_size)
    moments = torch.zeros(size, 2 * channels, *latent_size, dtype=torch.float16)
    return Batch(
        size=(width, height),
        pixels=None if encoded else torch.full((size, 3, height, width), 127, dtype=torch.uint8),
        moments=moments if encoded else None,
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
