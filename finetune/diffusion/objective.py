"""What the model is asked to predict, and how much each timestep counts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.schedule import Schedule


def constant(snr: Tensor, gamma: float) -> Tensor:
    """Every timestep counts the same."""
    return torch.ones_like(snr)


def soft_min_snr(snr: Tensor, gamma: float) -> Tensor:
    """Soft min-SNR for v-prediction: SNR·γ / ((SNR + γ)(SNR + 1)).

    The loss on x0 weighted by the smooth minimum SNR·γ/(SNR + γ) of SNR and γ (Crowson et al., arXiv 2401.11605,
    after Hang et al., arXiv 2303.09556), carried over to v: the squared error of x0 is 1 - alpha_bar = 1/(SNR + 1)
    times that of v.
    """
    return snr * gamma / ((snr + gamma) * (snr + 1.0))


WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {"constant": constant, "soft_min_snr": soft_min_snr}


class Objective(nn.Module):
    """Noising, the v target and the weighted squared error (Salimans & Ho, arXiv 2202.00512)."""

    signal: Tensor
    noise: Tensor
    weight: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        schedule = Schedule(config)
        weight = WEIGHTINGS[config.weighting](schedule.snr, config.snr_gamma).clamp(min=config.weight_floor)
        self.input_perturbation = config.input_perturbation
        self.register_buffer("signal", schedule.signal.float())
        self.register_buffer("noise", schedule.noise.float())
        self.register_buffer("weight", weight.float())

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
        return self.add_noise(latents, noise + self.input_perturbation * perturbation, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = sqrt(alpha_bar)·noise - sqrt(1 - alpha_bar)·latents, equation (11) of arXiv 2202.00512."""
        return at(self.signal, timesteps) * noise - at(self.noise, timesteps) * latents

    def loss(self, prediction: Tensor, target: Tensor, timesteps: Tensor, sample_weights: Tensor) -> Tensor:
        """Mean over the micro-batch of sample weight · weight(t) · mean squared error; a float32 scalar.

        Args:
            prediction, target: [B, C, H, W].
            timesteps: int64 [B].
            sample_weights: float32 [B]; 1, or the weight of the prior for regularisation images (DreamBooth, arXiv
                2208.12242, equation (2)).
        """
        per_sample = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
        return (sample_weights * self.weight[timesteps] * per_sample).mean()


def at(values: Tensor, timesteps: Tensor) -> Tensor:
    """The value of each sample's timestep, shaped [B, 1, 1, 1] to broadcast over [B, C, H, W]."""
    return values[timesteps].view(-1, 1, 1, 1)
