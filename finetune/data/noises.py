"""The noise of a draw, a function of (seed, epoch, sample, repeat): drawn on the CPU, as a device's own generator would
make it depend on the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from finetune.data.hashing import CounterRng, purpose_key
from finetune.data.plan import Draw
from finetune.diffusion.config import NoiseConfig
from finetune.diffusion.noise import pyramid, pyramid_sizes


class Noises(NamedTuple):
    """All that is random about a draw's latents."""

    noise: Tensor
    """float32 [C, h, w], of mean square 1; with a pyramid where there is one"""
    offset: Tensor
    """float32 [C, 1, 1], standard normal or, with a random strength, a share of that; 0 where there is none"""
    perturbation: Tensor
    """float32 [C, h, w], likewise; zeros [1, 1, 1] where there is none"""
    posterior: Tensor
    """float32 [C, h, w], standard normal"""


class NoiseSource:
    """Draws noise. What is added to it comes from streams of its own, so that adding it changes nothing else."""

    def __init__(self, config: NoiseConfig, seed: int) -> None:
        self._config = config
        self._key = purpose_key(seed, "noise")
        self._pyramid_key = purpose_key(seed, "pyramid noise")
        self._offset_key = purpose_key(seed, "offset noise")
        self._strength_key = purpose_key(seed, "noise strength")

    def draw(self, draw: Draw, shape: tuple[int, int, int]) -> Noises:
        """The noise of a draw for latents of shape [C, h, w]."""
        counters = (draw.epoch, draw.sample, draw.repeat)
        noise, perturbation, posterior = torch.from_numpy(CounterRng(self._key, *counters).normal((3, *shape)))
        offset_strength, perturbation_strength = CounterRng(self._strength_key, *counters).uniforms(2).tolist()
        if self._config.perturbation_random:
            perturbation = perturbation * perturbation_strength
        if not self._config.perturbation:
            perturbation = torch.zeros(1, 1, 1)
        offset = self._offset(counters, shape[0]) * (offset_strength if self._config.offset_random else 1.0)
        return Noises(self._with_pyramid(noise, counters), offset, perturbation, posterior)

    def _offset(self, counters: tuple[int, int, int], channels: int) -> Tensor:
        if not self._config.has_offset:
            return torch.zeros(channels, 1, 1)
        return torch.from_numpy(CounterRng(self._offset_key, *counters).normal((channels, 1, 1)))

    def _with_pyramid(self, noise: Tensor, counters: tuple[int, int, int]) -> Tensor:
        if not self._config.pyramid_levels:
            return noise
        rng = CounterRng(self._pyramid_key, *counters)
        channels, height, width = noise.shape
        sizes = pyramid_sizes(height, width, self._config.pyramid_levels)
        coarser = [torch.from_numpy(rng.normal((channels, *size))) for size in sizes]
        return pyramid(noise, coarser, self._config.pyramid_discount)
