"""The forward process: how much of the picture and how much noise there is at each timestep."""

from math import pi

import torch
from torch import Tensor

from finetune.diffusion.config import DiffusionConfig


def betas(config: DiffusionConfig) -> Tensor:
    """The variance of the noise that each timestep adds, before any rescale: float64 [timesteps]."""
    start, end, timesteps = config.beta_start, config.beta_end, config.timesteps
    match config.beta_schedule:
        case "cosine":
            return cosine_betas(timesteps)
        case "linear":
            return torch.linspace(start, end, timesteps, dtype=torch.float64)
        case _:
            return scaled_linear_betas(start, end, timesteps)


def scaled_linear_betas(start: float, end: float, timesteps: int) -> Tensor:
    """Betas whose square roots rise linearly, as in latent diffusion (Rombach et al., arXiv 2112.10752).

    Returns:
        float64 [timesteps].
    """
    return torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2


def cosine_betas(timesteps: int) -> Tensor:
    """Betas under which alpha_bar falls as the square of a cosine, none above 0.999: equation (17) of Nichol & Dhariwal
    (arXiv 2102.09672); diffusers' squaredcos_cap_v2.

    Returns:
        float64 [timesteps].
    """
    times = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    alphas_cumprod = torch.cos((times + 0.008) / 1.008 * pi / 2) ** 2
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


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
        alphas_cumprod = torch.cumprod(1.0 - betas(config), dim=0)
        if config.zero_terminal_snr:
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        self.signal = alphas_cumprod.sqrt()
        self.noise = (1.0 - alphas_cumprod).sqrt()
        self.snr = alphas_cumprod / (1.0 - alphas_cumprod)
        """alpha_bar / (1 - alpha_bar), after the rescale: exactly 0 at the end where that was asked for; [T]."""
