"""What a recipe makes of its data."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_tools.indexing import index_folder
from data_tools.stats import BARS_SHOWN, ROWS_SHOWN, Stats, collect, draw, tables
from finetune.data.index import NUMBERS, SCHEMA, TARS, Shard, write_index
from finetune.recipes import read_recipe
from tests.data_tools.test_indexing import picture, write_tar

SIZES = {"wide": (400, 100), "small": (40, 40), "square": (300, 300), "exact": (64, 64), "tall": (100, 200)}
SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]
Look = Callable[..., Stats]


def recipe(*settings: str) -> list[str]:
    return ["conf=demo", *SMALL, "train.micro_batch=1", "train.global_batch=1", *settings]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five pictures of as many sizes."""
    members = [(f"{name}.png", picture(9, size)) for name, size in SIZES.items()]
    write_tar(tmp_path / "a.tar", [*members, ("wide.txt", b"dog"), ("tall.json", b'{"caption": "a cat"}')])
    index_folder(tmp_path, "auto", workers=1)
    return tmp_path


@pytest.fixture
def look(shards: Path) -> Look:
    """The figures for some settings of the recipe."""
    return lambda *settings: collect(read_recipe(recipe(f"data.shards={shards}", *settings)))


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
    assert source.bytes == sum(len(picture(9, size)) for size in SIZES.values()) + len(b'dog{"caption": "a cat"}')


def test_a_picture_of_its_bucket_s_size_is_not_scaled_up(look: Look) -> None:
    stats = look("data.buckets.min_image_px=50")
    assert stats.scaled_up == 0
    plain = stats.to_plain()
    upper = np.array(plain["factor_edges"])[1:]
    assert np.array(plain["factors"])[upper > 1].sum() == 0
    assert plain["factors"][int(np.flatnonzero(upper == 1.0)[0])] == 1


def test_what_is_left_out_is_told_with_its_reason(look: Look, shards: Path) -> None:
    overlay, excluded = shards / "overlay.jsonl", shards / "exclude.txt"
    overlay.write_text('{"key": "wide", "score": 0.1}\n{"key": "small", "score": 0.1}\n{"key": "tall", "score": 0.9}')
    excluded.write_text("exact\nwide\n")
    sources = f"data.sources={{one: {{path: {shards}, overlay: {{path: {overlay}, min_score: 0.5}}}}}}"
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
    stats = collect(read_recipe(recipe(f"data.shards={tmp_path}", *settings)))
    assert stats.left_out == {"in a rare bucket, and too small for those that are kept": 1}


def test_sources_with_repeats_and_an_overlay_s_labels(shards: Path) -> None:
    overlay = shards / "overlay.jsonl"
    overlay.write_text('{"key": "wide", "tags": "a, b", "caption": "x"}\n{"key": "tall", "tags": "c"}')
    sources = (
        f"data.sources={{a: {{path: {shards}, repeats: 0.5}}, "
        f"b: {{path: {shards}, repeats: 3, overlay: {{path: {overlay}}}}}}}"
    )
    stats = collect(read_recipe(recipe("data.shards=null", sources)))
    assert [(s.name, s.draws, s.with_tags, s.with_caption) for s in stats.sources] == [
        ("a", 2.5, 1, 1),
        ("b", 15.0, 2, 2),
    ]
    assert stats.samples == 10
    assert by_size(stats)["64x64"].draws == pytest.approx(10.5)


def write_synthetic(folder: Path, count: int) -> None:
    """An index of pictures of all sizes, without the pictures."""
    folder.mkdir()
    random = np.random.default_rng(0)
    columns = {name: np.ones(count, dtype=kind.to_pandas_dtype()) for name, kind in NUMBERS.items()}
    columns |= {side: random.integers(30, 2000, count).astype(np.uint32) for side in ("width", "height")}
    named = {"key": pa.array([str(i) for i in range(count)], pa.large_string())}
    named["format"] = pa.array(["JPEG"] * count).dictionary_encode().cast(SCHEMA.field("format").type)
    table = pa.table({**named, **columns}, schema=SCHEMA)
    write_index(folder, TARS, [Shard("0.tar", 1, "", count)], [table])


@pytest.mark.parametrize(("step", "buckets"), [(64, 1), (4, 200)])
def test_tables_and_picture_with_few_and_many_buckets(tmp_path: Path, step: int, buckets: int) -> None:
    write_synthetic(tmp_path / "index", 20_000)
    settings = ["data.buckets.sizes_px=[[64,64]]"]
    if buckets > 1:
        sides = ",".join(f"[{64 + 8 * i},512]" for i in range(buckets))
        settings = [f"data.buckets.sizes_px=[{sides}]"]
    stats = collect(read_recipe(recipe(f"data.shards={tmp_path / 'index'}", *settings)))
    assert sum(b.samples for b in stats.buckets) == stats.samples == 20_000
    draw(stats, tmp_path / "stats.png")
    with Image.open(tmp_path / "stats.png") as image:
        assert image.width < 2000
        assert 300 < image.height < 2000
    assert tables(stats)[1].row_count == min(len(stats.buckets), ROWS_SHOWN) + 1
    assert (len(stats.buckets) > BARS_SHOWN) == (buckets > 1)


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "data_tools", "stats", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_command(shards: Path, tmp_path: Path) -> None:
    done = run(*recipe(f"data.shards={shards}"), "--json", "--out", "figures", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["samples"] == 5
    assert len(told["factor_edges"]) == len(told["factors"]) + 1
    assert (tmp_path / "figures" / "stats.png").is_file()
    plain = run(*recipe(f"data.shards={shards}"), cwd=tmp_path)
    assert "48×80" in plain.stdout
    assert (tmp_path / "stats.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe"),
        (["conf=demo", "data.nothing=1"], "there is no setting data.nothing"),
        (["conf=demo", "data.shards=/nowhere"], "there is no index /nowhere/index.arrow"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
