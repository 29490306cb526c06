"""How buckets treat many pictures at once: how much each is scaled, and how much of it is cut away."""

from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.buckets import I64, NONE

F64 = npt.NDArray[np.float64]


def scale_factors(widths: npt.NDArray[Any], heights: npt.NDArray[Any], buckets: npt.NDArray[Any], sizes: I64) -> F64:
    """Pixels that `buckets.fit` makes of a picture's pixel, along a side: float64 [pictures]; above 1 it is scaled up.

    Args:
        widths: of the pictures, integers [pictures]; `heights` likewise.
        buckets: row of `sizes` for every picture, [pictures]; those in NONE get NaN.
        sizes: (width, height) of every bucket, int64 [buckets, 2].
    """
    across, down = _targets(buckets, sizes)
    factors: F64 = np.maximum(across / widths, down / heights)
    return factors


def cropped_shares(widths: npt.NDArray[Any], heights: npt.NDArray[Any], buckets: npt.NDArray[Any], sizes: I64) -> F64:
    """Share of the scaled picture's area that `buckets.fit` cuts away: float64 [pictures]; arguments as above."""
    across, down = _targets(buckets, sizes)
    scale = scale_factors(widths, heights, buckets, sizes)
    scaled = np.maximum(across, np.rint(widths * scale)) * np.maximum(down, np.rint(heights * scale))
    shares: F64 = 1.0 - across * down / scaled
    return shares


def _targets(buckets: npt.NDArray[Any], sizes: I64) -> tuple[F64, F64]:
    """Width and height of every picture's bucket: float64 [pictures] each."""
    known = buckets != NONE
    targets = np.full((len(buckets), 2), np.nan)
    targets[known] = sizes[buckets[known]]
    return targets[:, 0], targets[:, 1]
