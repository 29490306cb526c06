"""What is made of the difference between a prediction and its target."""

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.schedule import Schedule


def l2(difference: Tensor, delta: Tensor) -> Tensor:
    """The square."""
    return difference.square()


def l1(difference: Tensor, delta: Tensor) -> Tensor:
    """The absolute value."""
    return difference.abs()


def huber(difference: Tensor, delta: Tensor) -> Tensor:
    """Pseudo-Huber: 2δ(√(x² + δ²) − δ), which is x² for |x| ≪ δ and 2δ|x| for |x| ≫ δ.

    Twice Hδ of Khrapov et al. (arXiv 2403.16728), so that it passes into l2 as δ grows; written without their
    difference, in which small errors would be lost.
    """
    squared = difference.square()
    return 2.0 * delta * squared / ((squared + delta.square()).sqrt() + delta)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2, "l1": l1, "huber": huber}
"""Name -> function of the difference and of delta, which are broadcast against one another."""


def huber_deltas(schedule: Schedule, config: DiffusionConfig) -> Tensor:
    """Delta of every timestep: float64 [timesteps].

    exponential: δ^(t/T), from 1 to δ (Khrapov et al., arXiv 2403.16728). snr: (1 − δ)/(1 + σ)² + δ with
    σ = 1/√SNR, which is near 1 where there is little noise, and δ where there is nothing else.
    """
    delta = config.huber_delta
    match config.huber_schedule:
        case "exponential":
            return delta ** torch.linspace(0.0, 1.0, config.timesteps, dtype=torch.float64)
        case "snr":
            # 1/(1 + σ) = √ᾱ/(√ᾱ + √(1 − ᾱ)), which is finite at SNR 0
            return (1.0 - delta) * (schedule.signal / (schedule.signal + schedule.noise)) ** 2 + delta
        case _:
            return torch.full((config.timesteps,), delta, dtype=torch.float64)
