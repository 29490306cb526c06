"""What a run is fed with, at its start and at the borders of epochs."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config import BatchConfig, Config, RunConfig, policies
from finetune.data.batch import LatentShape
from finetune.data.config import DataConfig, OverlayConfig, SourceConfig
from finetune.data.index import Index
from finetune.data.plan import Plan
from finetune.data.prompts.config import CaptionsConfig, TagsConfig
from finetune.data.shapes import PlanSettings, Shape
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.feed import Feed, plan_identity
from finetune.phases import PhaseConfig
from tests.data.test_loader import same
from tests.helpers import SMALL, Letters, data_config, sample_ids

SETTINGS = PlanSettings((Shape(0, SMALL, 4),), global_batch=16, seed=3)


class Alone:
    """One process."""

    rank, world, is_main = 0, 1, True

    def gather(self, value: Any) -> list[Any]:
        return [value]


def recipe(data: DataConfig) -> Config:
    return Config(run=RunConfig("test"), train=BatchConfig(4, 16), phases=[PhaseConfig("1 steps")], data=data)


def open_feed(data: DataConfig, folder: Path) -> Feed:
    return Feed(data, policies(recipe(data)), SETTINGS, folder, Alone())


def batches(feed: Feed, steps: range) -> list[Any]:
    with feed.batches(steps, Letters(), LatentShape(4, 8), diffusion=DiffusionConfig(), pin=False) as opened:
        return [next(opened) for _ in range(4 * len(steps))]


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_stopping_anywhere_changes_nothing(shards: Path, tmp_path: Path, workers: int) -> None:
    """Twice in one epoch, with batches prefetched, by any number of workers."""
    feed = open_feed(data_config(shards, workers=workers, flip=0.5, random_crop=True), tmp_path / "run")
    feed.begin(None, 0)
    whole = open_feed(data_config(shards, workers=0, flip=0.5, random_crop=True), tmp_path / "whole")
    whole.begin(None, 0)
    expected = batches(whole, range(6))
    found = batches(feed, range(1))
    with feed.batches(range(1, 6), Letters(), LatentShape(4, 8), diffusion=DiffusionConfig(), pin=False) as opened:
        found += [next(opened) for _ in range(4)]  # and four more are under way
    again = open_feed(data_config(shards, workers=workers, flip=0.5, random_crop=True), tmp_path / "run")
    again.begin(feed.journal.to_plain(), 2)
    found += batches(again, range(2, 6))
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_data_that_cannot_change_has_no_borders(shards: Path, tmp_path: Path) -> None:
    feed = open_feed(data_config(shards), tmp_path / "run")
    feed.begin(None, 0)
    assert feed.border(0) is None


def test_borders_are_the_steps_in_which_epochs_begin(shards: Path, tmp_path: Path) -> None:
    feed = open_feed(data_config(shards, on_change="next_epoch"), tmp_path / "run")
    feed.begin(None, 0)
    borders, step = [], 0
    for _ in range(3):
        step = feed.border(step) or 0
        borders.append(step)
    assert borders == [feed.plan.first_step(epoch) for epoch in (1, 2, 3)]


def test_a_change_that_cannot_be_used_leaves_all_as_it_was(shards: Path, tmp_path: Path) -> None:
    overlay, index = tmp_path / "overlay.jsonl", Index.load(shards)
    key = index.key(0)
    overlay.write_text(json.dumps({"key": key, "tags": ["one"]}))
    source = SourceConfig(str(shards), overlay=OverlayConfig(str(overlay)))
    feed = open_feed(DataConfig(sources={"main": source}, buckets=SMALL, window_shards=1), tmp_path / "run")
    feed.begin(None, 0)
    before = feed.journal
    border = feed.border(0)
    assert border is not None
    assert feed.changes(border, lambda plan: None) is None
    overlay.write_text("{half a li")
    with pytest.raises(UserError, match="cannot be read"):
        feed.changes(border, lambda plan: None)
    overlay.write_text("\n".join(json.dumps({"id": sample, "exclude": True}) for sample in sample_ids(index)))
    with pytest.raises(UserError, match="the data set has 0 samples"):
        feed.changes(border, lambda plan: None)
    assert feed.journal == before
    overlay.write_text(json.dumps({"key": key, "tags": ["two"]}))

    def refuse(plan: Plan) -> None:
        raise UserError(f"{plan.steps(1)} steps do not suit")

    with pytest.raises(UserError, match="steps do not suit"):
        feed.changes(border, refuse)
    assert feed.journal == before
    journal = feed.changes(border, lambda plan: None)
    assert journal is not None
    feed.renew(journal)
    assert feed.journal.editions[-1].epoch == 1
    assert feed.changes(border, lambda plan: None) is None


def test_the_weights_in_effect_are_told_by_source(shards: Path, tmp_path: Path) -> None:
    """All samples have both tags and a caption; in one of the sources the overlay takes the captions of a quarter."""
    index, overlay = Index.load(shards), tmp_path / "overlay.jsonl"
    fourth = [json.dumps({"key": index.key(row), "caption": []}) for row in range(0, len(index), 4)]
    overlay.write_text("\n".join(fourth))
    whole = SourceConfig(str(shards), captions={"mix": {"tags": 1.0, "caption": 4.0}})
    sources = {"whole": whole, "less": SourceConfig(str(shards), overlay=OverlayConfig(str(overlay)))}
    config = data_config(shards)
    config.shards, config.sources = None, sources
    feed = open_feed(config, tmp_path / "run")
    feed.begin(None, 0)
    forms = feed.forms(0)
    assert forms["whole"] == pytest.approx({"tags": 0.2, "caption": 0.8})
    lost = len(fourth) / len(index)
    assert forms["less"] == pytest.approx({"tags": 0.5 + lost / 2, "caption": 0.5 - lost / 2})


def test_what_stands_around_prompts_is_checked_without_a_model(tmp_path: Path, shards: Path) -> None:
    config = recipe(data_config(shards))
    config.captions = CaptionsConfig(prefix="word " * (Letters.max_tokens + 1))
    feed = Feed(config.data, policies(config), SETTINGS, tmp_path, Alone())
    with pytest.raises(UserError, match=r"have 76 tokens, but model\.max_tokens is 75"):
        feed.check_prompts(Letters())


def test_a_source_s_captions_stand_over_the_recipe_s() -> None:
    data = DataConfig(sources={"a": SourceConfig("a"), "b": SourceConfig("b", captions={"drop": 0.5}, loss_weight=0.3)})
    config = recipe(data)
    config.captions = CaptionsConfig(tags=TagsConfig(drop=0.2))
    a, b = policies(config)
    assert (a.prompter.config, a.loss_weight) == (CaptionsConfig(tags=TagsConfig(drop=0.2)), 1.0)
    assert (b.prompter.config, b.loss_weight) == (CaptionsConfig(tags=TagsConfig(drop=0.2), drop=0.5), 0.3)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"drp": 1}, r"data\.sources\.a\.captions\.drp: Key 'drp'"),
        ({"drop": 7}, r"data\.sources\.a\.captions: captions\.drop is 7"),
    ],
)
def test_a_source_s_mistaken_captions_are_named(captions: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        policies(recipe(DataConfig(sources={"a": SourceConfig("a", captions=captions)})))


def test_the_order_of_the_sources_is_part_of_what_must_stay() -> None:
    both = {"a": SourceConfig("a"), "b": SourceConfig("b")}
    turned = dict(reversed(both.items()))
    first, second = (plan_identity(DataConfig(sources=sources), SETTINGS, ()) for sources in (both, turned))
    assert first != second
