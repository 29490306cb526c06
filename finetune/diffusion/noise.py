"""Noise that is not plain: coarser noises on top of it, and offsets of whole channels."""

from collections.abc import Sequence
from functools import cache
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def pyramid_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """(height, width) of the coarser noises: each half of the one before it, down to a single number."""
    sizes = [(height, width)]
    while len(sizes) <= levels and sizes[-1] != (1, 1):
        sizes.append((max(sizes[-1][0] // 2, 1), max(sizes[-1][1] // 2, 1)))
    return sizes[1:]


def pyramid(noise: Tensor, coarser: Sequence[Tensor], discount: float) -> Tensor:
    """Multi-resolution noise (Whitaker, "Multi-Resolution Noise for Diffusion Model Training", 2023): the noise plus
    discount^i times the i-th coarser one scaled up, divided by the root of what the mean square is expected to be.

    Args:
        noise: standard normal [C, h, w].
        coarser: standard normal [C, h_i, w_i].
    """
    height, width = noise.shape[-2:]
    total, mean_square = noise, 1.0
    for level, coarse in enumerate(coarser, 1):
        scaled: Tensor = interpolate(coarse[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        total = total + discount**level * scaled
        spread = interpolated_mean_square(coarse.shape[-2], height) * interpolated_mean_square(coarse.shape[-1], width)
        mean_square += discount ** (2 * level) * spread
    return total / sqrt(mean_square)


@cache
def interpolated_mean_square(count: int, size: int) -> float:
    """The expected mean square of `count` standard normal numbers interpolated linearly to `size`: the mean over all
    places of the sum of the squares of the weights that the numbers have there."""
    unit = torch.eye(count, dtype=torch.float64)[None]
    weights = interpolate(unit, size=size, mode="linear", align_corners=False)[0]  # [count, size]
    return float(weights.square().sum(dim=0).mean())
