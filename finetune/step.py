"""One micro-batch: pixels -> latents -> noise -> prediction -> loss."""

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from finetune.data.loader import Batch, LatentShape
from finetune.diffusion.objective import Objective
from finetune.model.assemble import encode_pixels


class TrainingStep:
    """The loss of a micro-batch, under the precision that the strategy trains in."""

    def __init__(self, trainee: nn.Module, vae: AutoencoderKL, objective: Objective, autocast: torch.autocast) -> None:
        self._trainee = trainee
        self._vae = vae
        self._objective = objective
        self._autocast = autocast

    def loss(self, batch: Batch) -> Tensor:
        """Mean weighted loss over the micro-batch, whose tensors lie on the model's device; a float32 scalar."""
        with self._autocast:
            latents = encode_pixels(self._vae, batch.pixels, batch.posterior_noise)
        model_input = self._objective.model_input(latents, batch.noise, batch.perturbation, batch.timesteps)
        target = self._objective.target(latents, batch.noise, batch.timesteps)
        with self._autocast:
            prediction = self._trainee(model_input, batch.timesteps, batch.input_ids)
        return self._objective.loss(prediction, target, batch.timesteps, batch.loss_weights)


def trial_batch(input_ids: npt.NDArray[np.int64], width: int, height: int, latents: LatentShape) -> Batch:
    """A grey micro-batch of `width`×`height` pixels with the token ids given (int64 [m, chunks, 77]); for trying out
    whether it fits."""
    size = len(input_ids)
    noise = torch.zeros(size, *latents.of(width, height))
    return Batch(
        pixels=torch.full((size, 3, height, width), 127, dtype=torch.uint8),
        input_ids=torch.from_numpy(input_ids),
        size_and_crop=torch.tensor([[height, width, 0, 0, height, width]]).expand(size, -1),
        loss_weights=torch.ones(size),
        timesteps=torch.zeros(size, dtype=torch.int64),
        noise=noise,
        perturbation=noise,
        posterior_noise=noise,
        bad=[],
    )
