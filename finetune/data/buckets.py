"""Aspect buckets: which sizes there are, which one a picture belongs to, and how it is cut to fit."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.data.config import BucketsConfig
from finetune.errors import UserError

I64 = npt.NDArray[np.int64]


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

    For every width there is the tallest height that keeps the area within resolution², and the other way round.
    Where the side limit would cut that height short there is no bucket: it would only waste resolution.
    """
    area, step = config.resolution_px**2, config.step_px
    sides = range(step, config.max_side_px + 1, step)
    pairs = {(a, area // a // step * step) for a in sides}
    pairs = {(a, b) for a, b in pairs if step <= b <= config.max_side_px}
    both_ways = pairs | {(b, a) for a, b in pairs}
    return np.array(sorted(both_ways, key=lambda size: (size[0] / size[1], size)), dtype=np.int64)


def nearest_bucket(widths: npt.ArrayLike, heights: npt.ArrayLike, sizes: I64) -> I64:
    """The bucket of nearest aspect ratio for every picture: int64 [pictures].

    Distance is measured between logarithms of width/height, so portrait and landscape are treated alike; among
    buckets of equal aspect the largest wins.
    """
    by_area = np.argsort(-sizes.prod(axis=1), kind="stable")
    bucket_aspects = np.log(sizes[by_area, 0] / sizes[by_area, 1])
    aspects = np.log(np.asarray(widths, dtype=np.float64) / np.asarray(heights, dtype=np.float64))
    best = np.zeros(aspects.shape, dtype=np.int64)
    distance = np.full(aspects.shape, np.inf)
    # One pass per bucket keeps memory flat for 100 million pictures.
    for i, aspect in enumerate(bucket_aspects):
        closer = np.abs(aspects - aspect) < distance - 1e-9
        distance[closer] = np.abs(aspects[closer] - aspect)
        best[closer] = i
    return by_area[best]


def merge_rare(buckets: I64, sizes: I64, minimum: int) -> I64:
    """Move the samples of buckets that hold fewer than `minimum` to the nearest bucket that is kept.

    Args:
        buckets: bucket of every sample, int64 [samples].
        sizes: (width, height) of every bucket, int64 [buckets, 2].
        minimum: samples that a bucket needs to fill a micro-batch once an epoch.

    Raises:
        UserError: there are fewer samples than one micro-batch.
    """
    if len(buckets) < minimum:
        raise UserError(
            f"the data set has {len(buckets)} samples, fewer than one micro-batch of {minimum}: "
            "lower train.micro_batch or add data"
        )
    target = np.arange(len(sizes))
    counts = np.bincount(buckets, minlength=len(sizes))
    aspects = np.log(sizes[:, 0] / sizes[:, 1])
    while len(rare := np.flatnonzero((counts > 0) & (counts < minimum))):
        smallest = rare[np.argmin(counts[rare])]
        others = np.flatnonzero(counts > 0)
        others = others[others != smallest]
        nearest = others[np.argmin(np.abs(aspects[others] - aspects[smallest]))]
        counts[nearest] += counts[smallest]
        counts[smallest] = 0
        target[target == smallest] = nearest
    return target[buckets]


def fit(width: int, height: int, bucket_width: int, bucket_height: int, across: float, down: float) -> Crop:
    """The smallest scaling of a picture that covers its bucket, and the window at (across, down) in [0, 1]."""
    scale = max(bucket_width / width, bucket_height / height)
    scaled_width = max(bucket_width, round(width * scale))
    scaled_height = max(bucket_height, round(height * scale))
    left = round((scaled_width - bucket_width) * across)
    top = round((scaled_height - bucket_height) * down)
    return Crop(bucket_width, bucket_height, left, top, scaled_width, scaled_height)
