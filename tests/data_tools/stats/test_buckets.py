"""Which buckets a recipe's samples fill."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.indexing import index_folder
from data_tools.stats.bucket_tables import bucket_tables
from data_tools.stats.buckets import Stats, collect
from data_tools.stats.sources import open_sources
from finetune.recipes import read_recipe
from tests.data_tools.test_indexing import picture, write_tar

SIDES = [(400, 100), (40, 40), (300, 300), (64, 64), (100, 200)]
SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]
Look = Callable[..., Stats]


def recipe(*settings: str) -> list[str]:
    return ["conf=demo", *SMALL, "train.micro_batch=1", "train.global_batch=1", *settings]


def figures(arguments: list[str]) -> Stats:
    config = read_recipe(arguments)
    with tempfile.TemporaryDirectory() as kept:
        return collect(open_sources(config, Path(kept)))


@pytest.fixture
def look(odd_shards: Path) -> Look:
    """The figures for some settings of the recipe."""
    return lambda *settings: figures(recipe(f"data.shards={odd_shards}", *settings))


def by_size(stats: Stats) -> dict[str, Any]:
    return {f"{b.width_px}x{b.height_px}": b for b in stats.buckets}


def test_figures_by_hand(look: Look) -> None:
    stats = look()
    assert (stats.samples, stats.draws, stats.left_out) == (5, 5.0, {})
    found = by_size(stats)
    assert {size: b.samples for size, b in found.items()} == {"48x80": 1, "64x64": 3, "96x32": 1}
    assert found["64x64"].scaled_up == pytest.approx(1 / 3)
    assert found["64x64"].cropped == 0
    assert found["96x32"].cropped == pytest.approx(1 - 96 * 32 / (128 * 32))
    assert found["48x80"].cropped == pytest.approx(1 - 48 * 80 / (48 * 96))
    assert found["64x64"].share == pytest.approx(0.6)
    assert stats.scaled_up == pytest.approx(0.2)
    assert stats.cropped == pytest.approx(sum(b.cropped for b in stats.buckets) / 5)
    assert sum(stats.factors) == 5
    source = stats.sources[0]
    assert (source.samples, source.with_tags, source.with_caption, source.repeats) == (5, 1, 1, 1.0)
    assert source.bytes == sum(len(picture(9, size)) for size in SIDES) + len(b'dog{"caption": "a cat"}')


def test_a_picture_of_its_bucket_s_size_is_not_scaled_up(look: Look) -> None:
    stats = look("data.buckets.min_image_px=50")
    assert stats.scaled_up == 0
    plain = stats.to_plain()
    upper = np.array(plain["factor_edges"])[1:]
    assert np.array(plain["factors"])[upper > 1].sum() == 0
    assert plain["factors"][int(np.flatnonzero(upper == 1.0)[0])] == 1


def test_what_is_left_out_is_told_with_its_reason(look: Look, odd_shards: Path) -> None:
    overlay, excluded = odd_shards / "overlay.jsonl", odd_shards / "exclude.txt"
    overlay.write_text('{"key": "wide", "score": 0.1}\n{"key": "small", "score": 0.1}\n{"key": "tall", "score": 0.9}')
    excluded.write_text("exact\nwide\n")
    sources = f"data.sources={{one: {{path: {odd_shards}, overlay: {{path: {overlay}, min_score: 0.5}}}}}}"
    stats = look("data.shards=null", sources, f"data.exclude={excluded}", "data.buckets.min_image_px=50")
    assert stats.left_out == {
        "shorter side below min_image_px (50)": 1,
        "left out by the overlay": 1,
        "named in data.exclude": 1,
    }
    assert stats.samples == 2
    assert stats.sources[0].left_out == 3
    # What stands for an excluded sample is drawn in its place.
    assert stats.draws == 3
    assert by_size(stats)["64x64"].draws == 2
    assert by_size(stats)["64x64"].samples == 1


def test_no_bucket_without_upscaling(look: Look) -> None:
    stats = look("data.buckets.no_upscale=true", "data.buckets.step_px=64", "data.buckets.max_side_px=128")
    assert stats.left_out == {"too small for every bucket without upscaling": 1}
    assert stats.scaled_up == 0


def test_rare_buckets_are_merged_as_in_training(look: Look) -> None:
    stats = look("train.micro_batch=3", "train.global_batch=3")
    assert {size: b.samples for size, b in by_size(stats).items()} == {"64x64": 5}


def test_a_rare_bucket_that_none_can_take(tmp_path: Path) -> None:
    sizes = [(64, 64)] * 3 + [(40, 40)]
    write_tar(tmp_path / "a.tar", [(f"{i}.png", picture(i, size)) for i, size in enumerate(sizes)])
    index_folder(tmp_path, "auto", workers=1)
    settings = ("train.micro_batch=2", "train.global_batch=2", "data.buckets.no_upscale=true")
    stats = figures(recipe(f"data.shards={tmp_path}", *settings))
    assert stats.left_out == {"in a rare bucket, and too small for those that are kept": 1}


def test_samples_with_masks_are_counted(tmp_path: Path) -> None:
    members = [(f"{i}.png", picture(i, (64, 64))) for i in range(4)]
    write_tar(tmp_path / "a.tar", [*members, ("1.mask.png", picture(9)), ("3.mask.png", picture(9))])
    index_folder(tmp_path, "auto", workers=1)
    (tmp_path / "exclude.txt").write_text("3\n")
    stats = figures(recipe(f"data.shards={tmp_path}", f"data.exclude={tmp_path}/exclude.txt"))
    assert [(s.samples, s.with_mask) for s in stats.sources] == [(3, 1)]
    (sources, *_) = bucket_tables(stats)
    assert list(sources.columns[[c.header for c in sources.columns].index("mask")].cells) == ["33.3%"]


def test_sources_with_repeats_and_an_overlay_s_labels(odd_shards: Path) -> None:
    overlay = odd_shards / "overlay.jsonl"
    overlay.write_text('{"key": "wide", "tags": "a, b", "caption": "x"}\n{"key": "tall", "tags": "c"}')
    sources = (
        f"data.sources={{a: {{path: {odd_shards}, repeats: 0.5}}, "
        f"b: {{path: {odd_shards}, repeats: 3, overlay: {{path: {overlay}}}}}}}"
    )
    stats = figures(recipe("data.shards=null", sources))
    assert [(s.name, s.draws, s.with_tags, s.with_caption) for s in stats.sources] == [
        ("a", 2.5, 1, 1),
        ("b", 15.0, 2, 2),
    ]
    assert stats.samples == 10
    assert by_size(stats)["64x64"].draws == pytest.approx(10.5)
