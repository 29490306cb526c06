"""Aspect buckets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.buckets import bucket_sizes, fit, merge_rare, nearest_bucket
from finetune.data.config import BucketsConfig
from finetune.errors import UserError

CONFIGS = st.builds(
    lambda step, resolution, extra: BucketsConfig(resolution * step, (resolution + extra) * step, step),
    st.sampled_from([8, 32, 64]),
    st.integers(2, 24),
    st.integers(0, 24),
)


@given(CONFIGS)
def test_buckets_fill_the_area_within_the_limits_and_come_in_both_orientations(config: BucketsConfig) -> None:
    sizes = bucket_sizes(config)
    assert (sizes % config.step_px == 0).all()
    assert (sizes <= config.max_side_px).all()
    area = sizes.prod(axis=1)
    assert (area <= config.resolution_px**2).all()
    # One more step of the shorter side would exceed the area: nothing is wasted.
    grown = (sizes.min(axis=1) + config.step_px) * sizes.max(axis=1)
    assert (grown > config.resolution_px**2).all()
    pairs = {tuple(size) for size in sizes.tolist()}
    assert pairs == {(h, w) for w, h in pairs}
    assert (config.resolution_px, config.resolution_px) in pairs


def test_a_side_limit_of_the_resolution_leaves_only_the_square() -> None:
    assert bucket_sizes(BucketsConfig(1024, 1024, 32)).tolist() == [[1024, 1024]]


def test_the_recipe_s_buckets() -> None:
    sizes = {tuple(size) for size in bucket_sizes(BucketsConfig(768, 1024, 32)).tolist()}
    assert {(576, 1024), (768, 768), (1024, 576), (832, 704)} <= sizes


@given(CONFIGS, st.integers(1, 5000), st.integers(1, 5000))
def test_no_other_bucket_is_nearer_in_log_aspect(config: BucketsConfig, width: int, height: int) -> None:
    sizes = bucket_sizes(config)
    chosen = nearest_bucket([width], [height], sizes)[0]
    distances = np.abs(np.log(sizes[:, 0] / sizes[:, 1]) - np.log(width / height))
    assert distances[chosen] <= distances.min() + 1e-9
    turned = sizes[nearest_bucket([height], [width], sizes)[0]]
    turned_distance = abs(np.log(turned[0] / turned[1]) - np.log(height / width))
    assert turned_distance == pytest.approx(distances[chosen], abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=60))
def test_merging_leaves_every_bucket_in_use_full_enough(buckets: list[int]) -> None:
    sizes = np.array([[64 + 16 * i, 160 - 16 * i] for i in range(7)])
    merged = merge_rare(np.array(buckets), sizes, 4)
    counts = np.bincount(merged, minlength=7)
    assert counts.sum() == len(buckets)
    assert all(count == 0 or count >= 4 for count in counts)
    before = np.bincount(buckets, minlength=7)
    if (before[before > 0] >= 4).all():
        assert merged.tolist() == buckets


def test_too_few_samples_for_a_micro_batch_is_refused() -> None:
    with pytest.raises(UserError, match="3 samples, fewer than one micro-batch of 4"):
        merge_rare(np.array([0, 0, 1]), np.array([[64, 64], [32, 128]]), 4)


@given(*[st.integers(1, 4000)] * 4, st.floats(0, 1), st.floats(0, 1))
def test_a_crop_covers_its_bucket_and_keeps_the_aspect(
    width: int, height: int, bucket_width: int, bucket_height: int, across: float, down: float
) -> None:
    crop = fit(width, height, bucket_width, bucket_height, across, down)
    assert (crop.width, crop.height) == (bucket_width, bucket_height)
    assert 0 <= crop.left <= crop.scaled_width - crop.width
    assert 0 <= crop.top <= crop.scaled_height - crop.height
    assert crop.scaled_width == bucket_width or crop.scaled_height == bucket_height
    scale = max(bucket_width / width, bucket_height / height)
    assert abs(crop.scaled_width - width * scale) <= 0.5 + 1e-6 or crop.scaled_width == bucket_width
    assert abs(crop.scaled_height - height * scale) <= 0.5 + 1e-6 or crop.scaled_height == bucket_height


def test_the_middle_is_the_middle() -> None:
    crop = fit(200, 100, 100, 100, 0.5, 0.5)
    assert (crop.left, crop.top, crop.scaled_width, crop.scaled_height) == (50, 0, 200, 100)
