"""Aspect buckets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.buckets import NONE, assign_buckets, bucket_sizes, fit, merge_rare
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


def assigned(width: int, height: int, config: BucketsConfig) -> int:
    return int(assign_buckets(np.array([width], np.uint32), np.array([height], np.uint32), config)[0])


@given(CONFIGS, st.integers(1, 5000), st.integers(1, 5000))
def test_no_other_bucket_is_nearer_in_log_aspect(config: BucketsConfig, width: int, height: int) -> None:
    sizes = bucket_sizes(config)
    chosen = assigned(width, height, config)
    distances = np.abs(np.log(sizes[:, 0] / sizes[:, 1]) - np.log(width / height))
    assert distances[chosen] <= distances.min() + 1e-6
    turned = sizes[assigned(height, width, config)]
    turned_distance = abs(np.log(turned[0] / turned[1]) - np.log(height / width))
    assert turned_distance == pytest.approx(distances[chosen], abs=1e-6)
    rivals = sizes[np.abs(distances - distances[chosen]) < 1e-9]
    assert sizes[chosen].prod() == rivals.prod(axis=1).max()


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    widths, heights = rng.integers(1, 4000, (2, 1000)).astype(np.uint32)
    whole = assign_buckets(widths, heights, BucketsConfig())
    monkeypatch.setattr("finetune.data.buckets.PIECE", 7)
    assert np.array_equal(assign_buckets(widths, heights, BucketsConfig()), whole)


@given(CONFIGS, st.integers(1, 5000), st.integers(1, 5000))
def test_without_upscaling_a_picture_covers_its_bucket(config: BucketsConfig, width: int, height: int) -> None:
    config = replace(config, no_upscale=True)
    sizes = bucket_sizes(config)
    chosen = assigned(width, height, config)
    step = config.step_px
    if min(width, height) < step:
        assert chosen == NONE
        return
    bucket = sizes[chosen]
    assert bucket[0] <= width
    assert bucket[1] <= height
    assert (bucket % step == 0).all()
    full = len(bucket_sizes(replace(config, no_upscale=False)))
    if chosen >= full:
        # Its own size, as far as area and side allow.
        own = np.array([width, height]) // step * step
        assert (bucket == own).all() or own.prod() > config.resolution_px**2 or own.max() > config.max_side_px


def test_large_pictures_stay_in_the_full_buckets_without_upscaling() -> None:
    config = BucketsConfig(512, 768, 64, no_upscale=True)
    sizes = bucket_sizes(config)
    assert sizes[assigned(2000, 2000, config)].tolist() == [512, 512]
    assert sizes[assigned(300, 300, config)].tolist() == [256, 256]
    assert sizes[assigned(3000, 100, config)].tolist() == [768, 64]


def test_listed_buckets_are_the_only_ones() -> None:
    config = BucketsConfig(sizes_px=[[512, 512], [640, 384], [384, 640], [320, 320]])
    sizes = bucket_sizes(config)
    assert len(sizes) == 4
    assert sizes[assigned(100, 100, config)].tolist() == [512, 512]
    assert sizes[assigned(4000, 1000, config)].tolist() == [640, 384]


def test_small_pictures_are_left_out() -> None:
    config = BucketsConfig(min_image_px=200)
    assert assigned(199, 4000, config) == NONE
    assert assigned(200, 4000, config) != NONE


@given(st.lists(st.integers(0, 6), min_size=4, max_size=60))
def test_merging_leaves_every_bucket_in_use_full_enough(buckets: list[int]) -> None:
    sizes = np.array([[64 + 16 * i, 160 - 16 * i] for i in range(7)])
    before = np.bincount(buckets, minlength=7)
    target = merge_rare(before, sizes, 4, no_upscale=False)
    counts = np.bincount(target[buckets], minlength=7)
    assert counts.sum() == len(buckets)
    assert all(count == 0 or count >= 4 for count in counts)
    if (before[before > 0] >= 4).all():
        assert target[buckets].tolist() == buckets


def test_merging_without_upscaling_goes_down_or_leaves_out() -> None:
    sizes = np.array([[64, 64], [128, 128], [64, 128], [256, 64]])
    target = merge_rare(np.array([9, 1, 2, 1]), sizes, 4, no_upscale=True)
    assert target.tolist() == [0, 0, 0, 0]
    assert merge_rare(np.array([1, 9, 9, 9]), sizes, 4, no_upscale=True)[0] == NONE


def test_too_few_samples_for_a_micro_batch_is_refused() -> None:
    with pytest.raises(UserError, match="3 samples, fewer than one micro-batch of 4"):
        merge_rare(np.array([2, 1]), np.array([[64, 64], [32, 128]]), 4, no_upscale=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes_px": [[512, 500]]}, "multiples of 8"),
        ({"sizes_px": [[512]]}, "width, height"),
        ({"min_image_px": -1}, "min_image_px is -1"),
        ({"step_px": 12}, "multiple of 8"),
    ],
)
def test_what_is_not_allowed_is_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BucketsConfig(**settings)  # type: ignore[arg-type]


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
