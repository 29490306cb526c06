"""Aspect buckets: which sizes there are, which one a picture belongs to, and how it is cut to fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.config import BucketsConfig
from finetune.errors import UserError

I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
NONE = 0xFFFF
"""The bucket of samples that are left out."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Crop:
    """Scale a whole picture to (scaled_width, scaled_height), then cut (width, height) at (left, top); in pixels."""

    width: int
    height: int
    left: int
    top: int
    scaled_width: int
    scaled_height: int


def bucket_sizes(config: BucketsConfig) -> I64:
    """The buckets of a recipe as (width, height) in pixels: int64 [buckets, 2], narrowest first.

    Those of the recipe's list; else, for every width, the tallest height that keeps the area within resolution², and
    the other way round. Where the side limit would cut that height short there is no bucket: it would only waste
    resolution. With `no_upscale`, all smaller sizes in steps of `step_px` follow them.
    """
    full = _listed_sizes(config) if config.sizes_px else _generated_sizes(config)
    return np.concatenate([full, _smaller_sizes(full, config.step_px)]) if config.no_upscale else full


def assign_buckets(widths: npt.NDArray[Any], heights: npt.NDArray[Any], config: BucketsConfig) -> U16:
    """The bucket of every picture, as a row of `bucket_sizes`: uint16 [pictures]; NONE for those that are too small.

    A picture belongs to the bucket of nearest aspect; the distance is measured between logarithms of width/height, so
    portrait and landscape are treated alike, and among buckets of equal aspect the largest wins.
    """
    sizes = bucket_sizes(config)
    full = sizes[: len(sizes) - _count_smaller(sizes, config)]
    nearest = _by_aspect(full)
    assigned = np.empty(len(widths), dtype=np.uint16)
    # In pieces, so that memory stays flat for 100 million pictures.
    for start in range(0, len(widths), PIECE):
        width, height = (side[start : start + PIECE].astype(np.int64) for side in (widths, heights))
        piece = nearest(width, height)
        if config.no_upscale:
            piece = _without_upscaling(width, height, piece, sizes, len(full), config.step_px)
        piece[np.minimum(width, height) < config.min_image_px] = NONE
        assigned[start : start + PIECE] = piece
    return assigned


def merge_rare(counts: npt.NDArray[Any], sizes: I64, minimum: int, *, no_upscale: bool) -> I64:
    """Where each bucket's samples go when those with too few of them move to the nearest that is kept.

    Args:
        counts: draws an epoch of every bucket: [buckets].
        sizes: (width, height) of every bucket, int64 [buckets, 2].
        minimum: draws that a bucket needs to fill a micro-batch once an epoch.
        no_upscale: only move samples to buckets that are no larger on either side.

    Returns:
        int64 [buckets]: the bucket itself, another, or NONE where there is none to move to.

    Raises:
        UserError: there are fewer draws than one micro-batch.
    """
    if counts.sum() < minimum:
        raise UserError(
            f"the data set has {int(counts.sum())} samples, fewer than one micro-batch of {minimum}: "
            "lower train.micro_batch or add data"
        )
    target = np.arange(len(sizes))
    counts = counts.astype(np.float64)
    aspects = np.log(sizes[:, 0] / sizes[:, 1])
    while len(rare := np.flatnonzero((counts > 0) & (counts < minimum))):
        smallest = int(rare[np.argmin(counts[rare])])
        fits = (sizes <= sizes[smallest]).all(axis=1) if no_upscale else np.ones(len(sizes), dtype=bool)
        others = np.flatnonzero((counts > 0) & fits & (np.arange(len(sizes)) != smallest))
        moved = target == smallest
        if len(others):
            # Of equal aspects the largest, which wastes the fewest pixels.
            distance = np.abs(aspects[others] - aspects[smallest]).round(9)
            nearest = others[np.lexsort((-sizes[others].prod(axis=1), distance))[0]]
            counts[nearest] += counts[smallest]
            target[moved] = nearest
        else:
            target[moved] = NONE
        counts[smallest] = 0
    return target


def _listed_sizes(config: BucketsConfig) -> I64:
    return np.array(sorted({(w, h) for w, h in config.sizes_px}, key=_narrowest_first), dtype=np.int64)


def _generated_sizes(config: BucketsConfig) -> I64:
    area, step = config.resolution_px**2, config.step_px
    sides = range(step, config.max_side_px + 1, step)
    pairs = {(a, area // a // step * step) for a in sides}
    pairs = {(a, b) for a, b in pairs if step <= b <= config.max_side_px}
    return np.array(sorted(pairs | {(b, a) for a, b in pairs}, key=_narrowest_first), dtype=np.int64)


def _smaller_sizes(full: I64, step: int) -> I64:
    """All sizes in multiples of `step` within the largest area and side of `full`: int64 [sizes, 2], width first."""
    area, side = int(full.prod(axis=1).max()), int(full.max())
    steps = range(step, side + 1, step)
    return np.array([(a, b) for a in steps for b in steps if a * b <= area], dtype=np.int64)


def _count_smaller(sizes: I64, config: BucketsConfig) -> int:
    return len(sizes) - len(bucket_sizes(replace(config, no_upscale=False))) if config.no_upscale else 0


def _narrowest_first(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    return size[0] / size[1], size


def _by_aspect(sizes: I64) -> Callable[[I64, I64], I64]:
    """What finds the size of nearest aspect for (widths, heights)."""
    by_area = np.argsort(-sizes.prod(axis=1), kind="stable")
    aspects, largest = np.unique((sizes[by_area, 0] / sizes[by_area, 1]).round(9), return_index=True)
    # Halfway between two logarithms lies the geometric mean.
    borders = np.sqrt(aspects[:-1] * aspects[1:])
    numbers = by_area[largest]

    def nearest(widths: I64, heights: I64) -> I64:
        found: I64 = numbers[np.searchsorted(borders, widths / heights)]
        return found

    return nearest


def _without_upscaling(widths: I64, heights: I64, buckets: I64, sizes: I64, full: int, step: int) -> I64:
    """Put pictures that do not cover their bucket into the smaller one of their own size, in multiples of `step`."""
    small = (sizes[buckets] > np.stack([widths, heights], axis=1)).any(axis=1)
    area, side = int(sizes.prod(axis=1).max()), int(sizes.max())
    own = np.minimum(np.stack([widths[small], heights[small]], axis=1), side)
    shrink = np.minimum(1.0, np.sqrt(area / np.maximum(own.prod(axis=1), 1)))
    own = np.floor(own * shrink[:, None]).astype(np.int64) // step
    numbers = np.full((side // step + 1, side // step + 1), NONE, dtype=np.int64)
    smaller = sizes[full:] // step
    numbers[smaller[:, 0], smaller[:, 1]] = full + np.arange(len(smaller))
    buckets = buckets.copy()
    buckets[small] = numbers[own[:, 0], own[:, 1]]
    return buckets


def fit(width: int, height: int, bucket_width: int, bucket_height: int, across: float, down: float) -> Crop:
    """The smallest scaling of a picture that covers its bucket, and the window at (across, down) in [0, 1]."""
    scale = max(bucket_width / width, bucket_height / height)
    scaled_width = max(bucket_width, round(width * scale))
    scaled_height = max(bucket_height, round(height * scale))
    left = round((scaled_width - bucket_width) * across)
    top = round((scaled_height - bucket_height) * down)
    return Crop(bucket_width, bucket_height, left, top, scaled_width, scaled_height)
