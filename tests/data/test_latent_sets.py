"""Which latents a run needs, and what is refused at its start."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_tools.indexing import index_folder
from finetune.data.ahead import any_remote, cache_needed, check_cache
from finetune.data.config import BucketsConfig, DataConfig, SourceConfig
from finetune.data.index import Index, Shard, write_index
from finetune.data.latent_sets import check_buckets, check_vae, of_pictures, origins, set_folder
from finetune.errors import UserError
from tests.data.test_loader import same
from tests.encoded import batches_of, encoded, fed, recipe
from tests.helpers import SMALL, data_config
from tests.servers import faulty_http


def test_a_set_is_named_by_what_decides_on_its_pixels() -> None:
    data = DataConfig(shards="here", latents="there/", buckets=SMALL)
    name = set_folder(data, "shards", SMALL)
    assert name.startswith("there/shards/")
    same_pixels = (replace(data, flip=0.5), replace(data, held_out=0.1), replace(data, shards="elsewhere"))
    assert all(set_folder(other, "shards", SMALL) == name for other in same_pixels)
    others = (replace(data, background=[0, 0, 0]), replace(data, mask="alpha"))
    names = {name, *(set_folder(other, "shards", SMALL) for other in others)}
    names |= {set_folder(data, "shards", replace(SMALL, step_px=8)), set_folder(data, "other", SMALL)}
    assert len(names) == 5


def test_pictures_are_told_from_others(shards: Path, tmp_path: Path, make_shards: Callable[..., Path]) -> None:
    index = Index.load(shards)
    expected = origins(index)
    assert len(set(expected)) == 2
    table = index.table(0)
    moved = [Shard(f"s3://bucket/{shard.name}", shard.size, shard.sha256, shard.samples) for shard in index.shards]
    tables = [table, index.table(1)]
    folders = [tmp_path / name for name in ("moved", "bytes", "rows")]
    for folder in folders:
        folder.mkdir()
    assert origins(write_index(folders[0], "tars", moved, tables)) == expected
    other = [replace(index.shards[0], sha256="0" * 64), index.shards[1]]
    assert [a == b for a, b in zip(origins(write_index(folders[1], "tars", other, tables)), expected, strict=True)] == [
        False,
        True,
    ]
    fewer = [replace(index.shards[0], samples=index.shards[0].samples - 1), index.shards[1]]
    without = [pa.concat_tables([table.slice(0, 3), table.slice(4)]), tables[1]]
    assert origins(write_index(folders[2], "tars", fewer, without))[0] != expected[0]


def opened(made_of: list[str], index: Index, folder: Path, **made: Any) -> Index:
    """An index of latents that were made of some shards."""
    told = {"origins": made_of, "mirrored": True, **made}
    return write_index(folder, "tars", index.shards, [index.table(i) for i in range(2)], latents=told)


def test_latents_of_other_pictures_are_refused(shards: Path, tmp_path: Path) -> None:
    index = Index.load(shards)
    first, second = origins(index)
    for made_of, flip, sentence in (
        ([first, "0"], False, r"were made of another shard than shard-00001\.tar of source 'main': make them with"),
        ([second, first], False, "were made of another shard than shard-00000"),
        ([first], False, r"'main' has grown by 1 shards that the latents in .* do not have: make them with"),
    ):
        with pytest.raises(UserError, match=sentence):
            of_pictures(opened(made_of, index, tmp_path), index, "main", flip=flip)
    with pytest.raises(UserError, match=r"have no mirror images, and data\.flip is above 0: set data\.flip=0"):
        of_pictures(opened([first, second], index, tmp_path, mirrored=False), index, "main", flip=True)
    of_pictures(opened([first, second], index, tmp_path, mirrored=False), index, "main", flip=False)
    # Latents of more than a run knows of, as its index has grown since it began.
    smaller = of_pictures(opened([first, second], index, tmp_path), index.head(1), "main", flip=True)
    assert len(smaller.shards) == 1


def test_what_a_run_needs_is_checked_at_its_start(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"latents": str(tmp_path / "latents"), "held_out": 0.2}
    config = recipe(shards, tiny_model, **settings)
    (outcome,) = encoded(config, tmp_path)
    feed = fed(config, tmp_path / "run")
    check_vae(feed.sources, json.loads((outcome.folder / "set.json").read_text())["vae"])
    with pytest.raises(UserError, match=r"made with another VAE than that of model\.path: give another data\.latents"):
        check_vae(feed.sources, "0" * 64)
    for other in ({"background": [0, 0, 0]}, {"mask": "alpha"}, {"buckets": BucketsConfig(64, 128, 16)}):
        with pytest.raises(
            UserError, match=r"no index .*: make the latents of source 'shards' for these data\.buckets"
        ):
            fed(recipe(shards, tiny_model, **{**settings, **other}), tmp_path / "other")
    # What is held out has latents too, and needs none where nothing is held out any more.
    fed(recipe(shards, tiny_model, **{**settings, "held_out": 0.0}), tmp_path / "other")


def test_a_rare_bucket_that_is_merged_otherwise_is_refused(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Of the 20 pictures of each aspect, a micro-batch of 32 leaves none a bucket of its own."""
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    encoded(config, tmp_path)
    config.train.micro_batch = config.train.global_batch = 32
    with pytest.raises(UserError, match=r"\d+ samples of source 'shards' have no latents of their buckets in"):
        fed(config, tmp_path / "run")


def test_only_what_is_still_to_be_trained_has_to_be_there(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(shards, tiny_model, phases=2, latents=str(tmp_path / "latents"))
    first, _ = encoded(config, tmp_path)
    feed = fed(config, tmp_path / "run")
    latents = feed.sources.all[0].latents
    assert latents[0].folder == first.folder
    feed.sources.all[0] = replace(feed.sources.all[0], latents={0: latents[2], 2: latents[2]})
    with pytest.raises(UserError, match="have no latents of their buckets"):
        check_buckets(feed.plan, feed.sources, 0)
    check_buckets(feed.plan, feed.sources, 2)


def test_far_latents_are_read_without_any_picture(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    here = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    (outcome,) = encoded(here, tmp_path)
    expected = batches_of(fed(here, tmp_path / "run"), range(2))
    for path in shards.glob("*.tar"):
        path.unlink()
    cache = data_config(shards).cache
    with faulty_http(tmp_path / "latents") as server:
        far = recipe(shards, tiny_model, latents=server.url, cache=replace(cache, folder=str(tmp_path / "cache")))
        feed = fed(far, tmp_path / "far")
        assert any_remote(feed.sources)
        sizes = [shard.size for shard in Index.load(outcome.folder).shards]
        assert cache_needed(feed.plan, feed.sources, windows_ahead=9) == sum(sizes)
        with pytest.raises(UserError, match=r"data\.cache\.size_gib"):
            check_cache(feed.plan, feed.sources, 9, sum(sizes) / 2**30 / 2)
        found = batches_of(feed, range(2))
    for one, other in zip(expected, found, strict=True):
        assert {fact.cached for fact in other.facts} <= {True, False}
        assert same(one._replace(facts=[]), other._replace(facts=[]))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_the_cache_has_to_hold_the_largest_phase(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    outcomes = encoded(recipe(shards, tiny_model, phases=2, latents=str(tmp_path / "latents")), tmp_path)
    with faulty_http(tmp_path / "latents") as server:
        cache = replace(data_config(shards).cache, folder=str(tmp_path / "cache"))
        feed = fed(recipe(shards, tiny_model, phases=2, latents=server.url, cache=cache), tmp_path / "far")
        assert cache_needed(feed.plan, feed.sources, windows_ahead=9) == max(outcome.size for outcome in outcomes)


def test_growth_is_taken_in_at_a_border_once_it_is_encoded(
    shards: Path, make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"), on_change="next_epoch")
    encoded(config, tmp_path)
    feed = fed(config, tmp_path / "run")
    (make_shards("more", count=21) / "shard-00000.tar").rename(shards / "another.tar")
    index_folder(shards, "auto", workers=1)
    border = feed.border(0)
    assert border is not None
    with pytest.raises(UserError, match="has grown by 1 shards that the latents in"):
        feed.changes(border, lambda plan: None)
    encoded(config, tmp_path)
    journal = feed.changes(border, lambda plan: None)
    assert journal is not None
    feed.renew(journal)
    assert [edition.epoch for edition in feed.journal.editions] == [0, 1]
    first = feed.plan.first_step(1)
    assert all(batch.moments is not None for batch in batches_of(feed, range(first, first + 1)))


def test_sources_have_latents_of_their_own(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    config.data.shards = None
    config.data.sources = {name: SourceConfig(path=str(shards)) for name in ("one", "two")}
    assert [outcome.folder.parent.name for outcome in encoded(config, tmp_path)] == ["one", "two"]
    feed = fed(config, tmp_path / "run")
    assert [source.stored(0).folder.parent.name for source in feed.sources.all] == ["one", "two"]
