"""Many pictures at once come out as each alone does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.buckets import NONE, assign_buckets, bucket_sizes, fit
from finetune.data.config import BucketsConfig
from finetune.data.geometry import cropped_shares, scale_factors

SIDES = st.integers(1, 5000)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=40), st.booleans())
def test_what_is_computed_at_once_is_what_fit_does(pictures: list[tuple[int, int]], no_upscale: bool) -> None:
    config = BucketsConfig(512, 768, 64, no_upscale=no_upscale)
    sizes = bucket_sizes(config)
    widths, heights = np.array(pictures, dtype=np.uint32).T
    buckets = assign_buckets(widths, heights, config)
    factors, shares = (f(widths, heights, buckets, sizes) for f in (scale_factors, cropped_shares))
    for (width, height), bucket, factor, share in zip(pictures, buckets, factors, shares, strict=True):
        if bucket == NONE:
            assert np.isnan(factor)
            assert np.isnan(share)
            continue
        across, down = (int(side) for side in sizes[bucket])
        crop = fit(width, height, across, down, 0.5, 0.5)
        assert share == 1.0 - across * down / (crop.scaled_width * crop.scaled_height)
        assert factor == max(across / width, down / height)
        assert not (no_upscale and factor > 1)


def test_by_hand() -> None:
    widths, heights = np.array([200, 50, 100, 100]), np.array([100, 50, 100, 100])
    buckets, sizes = np.array([0, 0, 0, NONE], dtype=np.uint16), np.array([[100, 100]])
    assert scale_factors(widths, heights, buckets, sizes)[:3].tolist() == [1.0, 2.0, 1.0]
    assert cropped_shares(widths, heights, buckets, sizes)[:3].tolist() == [0.5, 0.0, 0.0]
    assert np.isnan(cropped_shares(widths, heights, buckets, sizes)[3])


def test_pictures_of_no_bucket_only() -> None:
    none = np.full(2, NONE, dtype=np.uint16)
    assert scale_factors(np.array([1, 2]), np.array([1, 2]), none, np.array([[64, 64]])) == pytest.approx(
        [np.nan] * 2, nan_ok=True
    )
