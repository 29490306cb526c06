"""What the model is given, what it is asked to predict, and what its errors cost."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.losses import LOSSES, huber_deltas
from finetune.diffusion.schedule import Schedule
from finetune.diffusion.timesteps import Timesteps
from finetune.diffusion.weighting import neglect, timestep_weights

DECILES = 10


class Losses(NamedTuple):
    """What a micro-batch costs."""

    weighted: Tensor
    """Mean over the micro-batch of sample weight · weight(t) · error, which is trained; a float32 scalar."""
    by_decile: Tensor
    """By tenths of the timesteps, the first the least noisy: the sum of the errors that lie in each, and how many these
    are; float32 [2, 10], without a gradient. An error that is not finite stays in its own decile."""


class Objective(nn.Module):
    """Noising, the target and the weighted loss of a recipe."""

    signal: Tensor
    noise: Tensor
    target_latents: Tensor
    target_noise: Tensor
    weight: Tensor
    delta: Tensor
    deciles: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        """Make the tables. Raises UserError where a timestep has no finite weight, or none can be drawn."""
        super().__init__()
        schedule = Schedule(config)
        weight = timestep_weights(schedule.snr, config)
        self.neglect = neglect(weight, Timesteps(config).probabilities, config)
        """What a run has to say at its start about timesteps that hardly count."""
        self._strengths = config.noise
        self._loss = LOSSES[config.loss]
        target_latents, target_noise = target_factors(schedule, config.prediction)
        self.register_buffer("signal", schedule.signal.float())
        self.register_buffer("noise", schedule.noise.float())
        self.register_buffer("target_latents", target_latents.float())
        self.register_buffer("target_noise", target_noise.float())
        self.register_buffer("weight", weight.float())
        self.register_buffer("delta", huber_deltas(schedule, config).float())
        places = torch.arange(config.timesteps) * DECILES // config.timesteps
        self.register_buffer("deciles", (places == torch.arange(DECILES)[:, None]).float())  # [10, timesteps]

    def offset_noise(self, latents: Tensor, noise: Tensor, offset: Tensor) -> Tensor:
        """The noise with an offset for each sample and channel (Guttenberg, "Diffusion with Offset Noise", 2023),
        whose strength may grow with the absolute mean of the channel's latents.

        Args:
            latents, noise: [B, C, H, W].
            offset: [B, C, 1, 1].
        """
        means = latents.mean(dim=(2, 3), keepdim=True)
        strength = self._strengths.offset + self._strengths.adaptive_offset * means.abs()
        return noise + strength * offset

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar)·latents + sqrt(1 - alpha_bar)·noise.

        Args:
            latents, noise: [B, C, H, W].
            timesteps: int64 [B].
        """
        return at(self.signal, timesteps) * latents + at(self.noise, timesteps) * noise

    def model_input(self, latents: Tensor, noise: Tensor, perturbation: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents; with input perturbation the noise is noise + strength·perturbation (arXiv 2301.11706),
        which the target does not know of. All [B, C, H, W]; timesteps int64 [B]."""
        return self.add_noise(latents, noise + self._strengths.perturbation * perturbation, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model is to predict: latents, noise or v. All [B, C, H, W]; timesteps int64 [B]."""
        return at(self.target_noise, timesteps) * noise + at(self.target_latents, timesteps) * latents

    def errors(self, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
        """Every sample's loss per latent that counts, not weighted; 0 where none counts.

        Args:
            prediction, target: [B, C, H, W].
            timesteps: int64 [B].
            mask: how much each latent counts: float32 [B, 1, H, W], or [B, 1, 1, 1] where all count alike.

        Returns:
            float32 [B].
        """
        errors = self._loss(prediction.float() - target.float(), at(self.delta, timesteps))
        counted = mask.mean(dim=(1, 2, 3))
        return (mask * errors).mean(dim=(1, 2, 3)) / counted.masked_fill(counted == 0.0, 1.0)

    def loss(
        self, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor, sample_weights: Tensor
    ) -> Losses:
        """What a micro-batch costs.

        Args:
            prediction, target, timesteps, mask: as `errors` takes them.
            sample_weights: float32 [B]; 1, or the weight of the prior for regularisation images (DreamBooth, arXiv
                2208.12242, equation (2)).
        """
        errors = self.errors(prediction, target, timesteps, mask)
        weighted = (sample_weights * self.weight[timesteps] * errors).mean()
        return Losses(weighted, self._by_decile(errors.detach(), timesteps))

    def _by_decile(self, errors: Tensor, timesteps: Tensor) -> Tensor:
        inside = self.deciles[:, timesteps]  # [10, B]
        return torch.stack((torch.where(inside > 0.0, errors, 0.0).sum(1), inside.sum(1)))


def decile_means(by_decile: Sequence[float]) -> list[float | None]:
    """The mean error of each decile, None where there is none, from the numbers of `Losses.by_decile` in a row."""
    sums, counts = by_decile[:DECILES], by_decile[DECILES:]
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def target_factors(schedule: Schedule, prediction: str) -> tuple[Tensor, Tensor]:
    """How much of the latents and how much of the noise the target holds at each timestep, both float64 [T].

    v = sqrt(alpha_bar)·noise - sqrt(1 - alpha_bar)·latents: equation (11) of Salimans & Ho (arXiv 2202.00512).
    """
    one, zero = torch.ones_like(schedule.snr), torch.zeros_like(schedule.snr)
    factors = {"v": (-schedule.noise, schedule.signal), "epsilon": (zero, one), "x0": (one, zero)}
    return factors[prediction]


def at(values: Tensor, timesteps: Tensor) -> Tensor:
    """The value of each sample's timestep, shaped [B, 1, 1, 1] to broadcast over [B, C, H, W]."""
    return values[timesteps].view(-1, 1, 1, 1)
