"""Samples that are kept from training."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.config import SourceConfig
from finetune.data.held_out import hash_keys, held_out
from finetune.data.samples import place_of
from tests.helpers import data_config, open_data


def column(keys: list[str], chunks: int = 1) -> pa.ChunkedArray:
    cut = -(-len(keys) // chunks)
    pieces = [pa.array(keys[i : i + cut], pa.large_string()) for i in range(0, len(keys), cut)]
    return pa.chunked_array(pieces, pa.large_string())


@given(st.lists(st.text(max_size=40), min_size=1, max_size=30), st.integers(1, 4))
def test_a_key_s_hash_depends_on_nothing_but_the_key(keys: list[str], chunks: int) -> None:
    together = hash_keys(column(keys, chunks)).tolist()
    assert together == [int(hash_keys(column([key]))[0]) for key in keys]
    assert together == hash_keys(column(["x" * 100, *keys, "y"]).slice(1, len(keys))).tolist()
    by_key = dict(zip(keys, together, strict=True))
    assert len(set(by_key.values())) == len(by_key)


def test_keys_that_differ_in_zero_bytes_or_length_alone_differ() -> None:
    keys = ["", "\0", "\0\0", "a", "a\0", "a" * 8, "a" * 8 + "\0", "a" * 16]
    assert len(set(hash_keys(column(keys)).tolist())) == len(keys)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_held_out(share: float) -> None:
    count = 40_000
    found = len(held_out(column([f"{i:08}" for i in range(count)]), share))
    assert found == pytest.approx(share * count, abs=4 * (count * share * (1 - share)) ** 0.5)


def test_what_is_held_out_at_a_small_share_is_so_at_a_larger() -> None:
    keys = column([f"folder/{i}.jpg" for i in range(5000)])
    assert set(held_out(keys, 0.05)) < set(held_out(keys, 0.2))


def test_nothing_held_out_is_trained_and_all_else_is(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_shards("first", 50), make_shards("second", 50)
    sources = {"first": SourceConfig(str(first)), "second": SourceConfig(str(second))}
    config = data_config(first, held_out=0.25)
    config.shards, config.sources = None, sources
    dataset = open_data(config, tmp_path / "kept")
    plan = dataset.plan(dataset.began())
    ids, buckets = plan.chapter(0).layout.held_out()
    drawn = Counter(int(s) for step in range(plan.steps(12)) for m in plan.step(step) for s in m.samples)
    assert not drawn.keys() & set(ids.tolist())
    assert len(drawn) + len(ids) == 100
    assert set(buckets.tolist()) <= set(plan.chapter(0).buckets.tolist())
    # Keys of both sources are alike, so the same ones are held out.
    by_source = [{place_of(i)[1:] for i in ids.tolist() if place_of(i).source == number} for number in (0, 1)]
    assert by_source[0] == by_source[1]
    assert by_source[0]


def test_held_out_samples_are_in_the_bucket_of_their_picture(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_shards("shards", 60)
    held = open_data(data_config(folder, held_out=0.3), tmp_path / "kept")
    whole = open_data(data_config(folder), tmp_path / "kept")
    ids, buckets = held.plan(held.began()).chapter(0).layout.held_out()
    plan = whole.plan(whole.began())
    trained = {int(s): m.bucket for step in range(plan.steps(3)) for m in plan.step(step) for s in m.samples}
    assert np.array_equal(buckets, [trained[i] for i in ids.tolist()])
