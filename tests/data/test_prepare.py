"""From recipe and journal to plan and sources."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.indexing import index_folder
from finetune.data.config import BucketsConfig, DataConfig, OverlayConfig, SourceConfig
from finetune.data.index import Index
from finetune.data.journal import EXCLUDED, QUARANTINED, Jump, Quarantine, Skip
from finetune.data.outage import Patience
from finetune.data.plan import Plan
from finetune.data.prepare import open_index
from finetune.data.remote import Remote
from finetune.data.samples import place_of
from finetune.errors import UserError
from tests.helpers import SMALL, data_config, open_data, sample_ids
from tests.servers import faulty_http


def drawn(plan: Plan, epoch: int) -> Counter[int]:
    """How often each sample is drawn in an epoch, as far as its micro-batches have been emitted in it or the next."""
    steps = range(plan.first_step(epoch + 2) + 1)
    every = [draw for step in steps for micro_batch in plan.step(step) for draw in micro_batch.draws]
    return Counter(draw.sample for draw in every if draw.epoch == epoch)


def test_an_overlay_takes_samples_out(shards: Path, tmp_path: Path) -> None:
    index = Index.load(shards)
    overlay = tmp_path / "overlay.jsonl"
    lines = [
        {"key": index.key(0), "exclude": True, "score": 9.0},
        {"key": index.key(1), "exclude": False, "score": 0.1},
    ]
    overlay.write_text("\n".join(json.dumps(line) for line in lines))
    source = SourceConfig(str(shards), overlay=OverlayConfig(str(overlay), min_score=0.5))
    dataset = open_data(DataConfig(sources={"main": source}, buckets=SMALL, window_shards=1), tmp_path / "kept")
    counts = drawn(dataset.plan(dataset.began()), 0)
    assert set(counts) == set(sample_ids(index)[2:])
    assert set(counts.values()) == {1}


def test_a_run_goes_on_with_the_overlay_that_it_began_with(shards: Path, tmp_path: Path) -> None:
    index, overlay = Index.load(shards), tmp_path / "overlay.jsonl"
    source = SourceConfig(str(shards), overlay=OverlayConfig(str(overlay)))
    config = DataConfig(sources={"main": source}, buckets=SMALL, window_shards=1)
    overlay.write_text(json.dumps({"key": index.key(0), "tags": ["one"]}))
    journal = open_data(config, tmp_path / "kept").began()
    overlay.write_text(json.dumps({"key": index.key(0), "tags": ["two"]}))
    dataset = open_data(config, tmp_path / "kept")
    after = dataset.went_on(journal, step=1)
    assert [edition.epoch for edition in after.editions] == [0, 1]
    sources = dataset.sources(after)
    assert sources.read(0, 0, whole_shard=True).labels.tags == ("one",)
    assert sources.read(0, 1, whole_shard=True).labels.tags == ("two",)
    # Nothing has changed since, so nothing is written again.
    assert open_data(config, tmp_path / "kept").went_on(after, step=2) == after


def test_a_grown_index_is_taken_in_at_the_border(
    shards: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    config = data_config(shards, on_change="next_epoch")
    before = Index.load(shards)
    journal = open_data(config, tmp_path / "kept").began()
    shutil.copy(make_shards("more", count=20) / "shard-00000.tar", shards / "0.tar")
    index_folder(shards, "auto", workers=1)
    dataset = open_data(config, tmp_path / "kept")
    with pytest.raises(UserError, match="has grown by 1 shards"):
        open_data(replace(config, on_change="refuse"), tmp_path / "kept").went_on(journal, 2)
    plan = dataset.plan(dataset.went_on(journal, 2))
    assert set(drawn(plan, 0)) == set(sample_ids(before))
    assert set(drawn(plan, 1)) == set(sample_ids(Index.load(shards)))


def test_an_index_of_other_shards_is_refused(shards: Path, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    journal = open_data(data_config(shards), tmp_path / "kept").began()
    other = make_shards("other", count=30)
    with pytest.raises(UserError, match="is not the one that the run began with"):
        open_data(data_config(other, on_change="next_epoch"), tmp_path / "kept").went_on(journal, 2)


def test_sources_may_not_come_and_go(shards: Path, tmp_path: Path) -> None:
    journal = open_data(data_config(shards), tmp_path / "kept").began()
    both = {"shards": SourceConfig(str(shards)), "more": SourceConfig(str(shards))}
    dataset = open_data(DataConfig(sources=both, buckets=SMALL), tmp_path / "kept")
    with pytest.raises(UserError, match=r"data\.sources are shards, more now and were shards when the run began"):
        dataset.went_on(journal, 1)


def test_sources_are_numbered_in_their_order(shards: Path, tmp_path: Path) -> None:
    both = {"b": SourceConfig(str(shards)), "a": SourceConfig(str(shards), repeats=2.0)}
    dataset = open_data(DataConfig(sources=both, buckets=SMALL, window_shards=1), tmp_path / "kept")
    counts = drawn(dataset.plan(dataset.began()), 0)
    assert {place_of(sample).source: count for sample, count in counts.items()} == {0: 1, 1: 2}


def test_pictures_below_the_least_side_are_left_out(shards: Path, tmp_path: Path) -> None:
    index = Index.load(shards)
    buckets = BucketsConfig(resolution_px=64, max_side_px=96, step_px=16, min_image_px=90)
    dataset = open_data(data_config(shards, buckets=buckets), tmp_path / "kept")
    counts = drawn(dataset.plan(dataset.began()), 0)
    large = [sample for row, sample in enumerate(sample_ids(index)) if min(index.width[row], index.height[row]) >= 90]
    assert sorted(counts) == sorted(large)


def test_a_file_of_exclusions_that_is_not_there(shards: Path, tmp_path: Path) -> None:
    dataset = open_data(data_config(shards, exclude=str(tmp_path / "none.txt")), tmp_path / "kept")
    with pytest.raises(UserError, match=r"data\.exclude .*none\.txt cannot be read .*: give a text file of keys"):
        dataset.began()
    (tmp_path / "none.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(UserError, match="give a text file of keys"):
        dataset.began()
    (tmp_path / "none.txt").write_text("id:3\nid:²\nid:99999999999999999999999999\nid:5000\nnothing\n")
    with pytest.raises(UserError, match="has 4 lines that name no sample, 'id:²' the first: take them out"):
        dataset.began()


def test_what_else_is_in_the_journal_outlives_a_changed_exclusion(shards: Path, tmp_path: Path) -> None:
    """What the run has found out goes on, whatever the recipe excludes by now."""
    first, second, third = sample_ids(Index.load(shards))[:3]
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"id:{first}\nid:{second}\n")
    began = open_data(data_config(shards, exclude=str(listed)), tmp_path / "kept").began()
    assert began.excluded(0) == {first: EXCLUDED, second: EXCLUDED}
    found = began.with_skip(Skip(4, "loss is nan")).with_jump(Jump(3, 6, 4)).with_quarantine(Quarantine(7, (third,)))
    listed.write_text(f"id:{second}\n")
    changed = open_data(data_config(shards, exclude=str(listed)), tmp_path / "kept").went_on(found, step=9)
    assert changed.excluded(8) == {first: EXCLUDED, second: EXCLUDED, third: QUARANTINED}
    assert changed.excluded(9) == {second: EXCLUDED, third: QUARANTINED}
    assert (changed.skips, changed.jumps) == (found.skips, found.jumps)
    none = open_data(data_config(shards), tmp_path / "kept").went_on(changed, step=11)
    assert none.excluded(11) == {third: QUARANTINED}


@pytest.mark.parametrize("location", ["s3://bucket/{00..99}.tar", "/data/*.tar", "https://host/a.tar", "list.txt"])
def test_shards_in_place_of_their_index(location: str) -> None:
    with pytest.raises(UserError, match="names shards, and a run needs their index: make it with"):
        open_index(location, Remote(1.0), Patience(), Path("cache"))


def test_an_index_beside_remote_shards(shards: Path, make_shards: Callable[..., Path], tmp_path: Path) -> None:
    given = (Remote(2.0), Patience(alert_after_s=3.0), tmp_path / "cache")
    with faulty_http(shards) as server:
        index = open_index(server.url, *given)
        assert index.fingerprint == Index.load(shards).fingerprint
        assert index.location(1) == f"{server.url}/{index.shards[1].name}"
        asked = len(server.requests)
        open_index(server.url, *given)
        ranges = {request.range for request in server.requests[asked:] if request.method == "GET"}
        assert ranges <= {"bytes=0-0"}
        shutil.copy(make_shards("other", count=13) / "index.arrow", shards / "index.arrow")
        assert open_index(server.url, *given).fingerprint != index.fingerprint
        (shards / "index.arrow").write_bytes(b"not an index")
        with pytest.raises(UserError, match="is damaged"):
            open_index(server.url, *given)
        server.fail(status=500, seconds=0.5)
        with pytest.raises(UserError, match="is damaged"):
            open_index(server.url, *given)
        server.vanish("index.arrow")
        with pytest.raises(UserError, match="cannot be read"):
            open_index(server.url, *given)
