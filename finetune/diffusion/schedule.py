"""The forward process: how much of the picture and how much noise there is at each timestep."""

import torch
from torch import Tensor

from finetune.diffusion.config import DiffusionConfig


def scaled_linear_betas(start: float, end: float, timesteps: int) -> Tensor:
    """Betas whose square roots rise linearly, as in latent diffusion (Rombach et al., arXiv 2112.10752).

    Returns:
        float64 [timesteps].
    """
    return torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that it ends at 0 and still starts where it did.

    Algorithm 1 of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891).

    Args:
        alphas_cumprod: alpha_bar, falling: float [timesteps].
    """
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2


class Schedule:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of every timestep, and the signal-to-noise ratio that follows."""

    def __init__(self, config: DiffusionConfig) -> None:
        betas = scaled_linear_betas(config.beta_start, config.beta_end, config.timesteps)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        if config.zero_terminal_snr:
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        self.timesteps = config.timesteps
        self.signal = alphas_cumprod.sqrt()
        self.noise = (1.0 - alphas_cumprod).sqrt()
        self.snr = alphas_cumprod / (1.0 - alphas_cumprod)
        """alpha_bar / (1 - alpha_bar), after the rescale: exactly 0 at the end where that was asked for; [T]."""
