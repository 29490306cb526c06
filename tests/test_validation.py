"""The loss on samples that are never trained."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from finetune.data.batch import Batch, LatentShape
from finetune.data.buckets import bucket_sizes
from finetune.data.config import BucketsConfig
from finetune.data.samples import place_of
from finetune.data.shapes import PlanSettings, Shape
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.feed import Feed
from finetune.validation import Fixed, Outcome, choose, summary, validate
from tests.helpers import SMALL, Letters, data_config
from tests.test_feed import Alone, policies, recipe

HELD = 0.5
LARGER = BucketsConfig(resolution_px=96, max_side_px=144, step_px=16)


class Rank:
    """One of several processes, which has the values of all at hand."""

    def __init__(self, rank: int, world: int, values: list[Any]) -> None:
        self.rank, self.world, self._values = rank, world, values

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        return [value for value in self._values if value is not None]


def held_feed(shards: Path, folder: Path, seed: int = 3, held: float = HELD) -> Feed:
    data = data_config(shards, held_out=held, workers=0)
    shapes = (Shape(0, SMALL, 4), Shape(2, LARGER, 2))
    feed = Feed(data, policies(recipe(data)), PlanSettings(shapes, 16, seed), folder / "run", Alone())
    feed.begin(None, 0)
    return feed


def chosen(feed: Feed, count: int, epoch: int = 0) -> list[Fixed]:
    return choose(feed.plan, feed.sources, epoch, count, timesteps=1000)


def by_sample(chosen: list[Fixed]) -> dict[int, int]:
    """The timestep of every sample."""
    pairs = [zip(f.micro_batch.samples.tolist(), f.timesteps.tolist(), strict=True) for f in chosen]
    return {sample: timestep for pair in pairs for sample, timestep in pair}


def errors(batch: Batch) -> Tensor:
    """Stands in for the model: depends on pixels, prompt, noise and timestep."""
    told = batch.pixels.float().mean(dim=(1, 2, 3)) + batch.input_ids.float().mean(dim=(1, 2))
    return told * batch.noise.square().mean(dim=(1, 2, 3)) + batch.timesteps


def validated(feed: Feed, count: int, world: int = 1) -> list[dict[str, Any]]:
    batches = feed.micro_batches(range(0), Letters(), LatentShape(4, 8), DiffusionConfig())
    values: list[Any] = [None] * world
    fixed = chosen(feed, count)
    return [validate(fixed, batches, errors, Rank(rank, world, values)) for rank in range(world)]


def test_any_number_of_ranks_gets_the_same_number(shards: Path, tmp_path: Path) -> None:
    feed = held_feed(shards, tmp_path)
    (alone,) = validated(feed, 24)
    assert alone["samples"] == 24
    for world in (2, 3, 7):
        assert validated(feed, 24, world)[-1] == alone  # the last one has what all have found


def test_samples_and_timesteps_stay_the_same_whatever_is_trained(shards: Path, tmp_path: Path) -> None:
    feed = held_feed(shards, tmp_path)
    first, second = chosen(feed, 16), chosen(feed, 16, epoch=2)
    assert by_sample(first) == by_sample(second) == by_sample(chosen(held_feed(shards, tmp_path / "b", seed=9), 16))
    # Another phase has other buckets and micro-batches.
    assert max(len(f.timesteps) for f in first) == 4
    assert max(len(f.timesteps) for f in second) == 2
    assert {f.micro_batch.bucket for f in second} <= set(feed.plan.chapter(2).buckets.tolist())
    assert len(feed.plan.sizes) == len(bucket_sizes(SMALL)) + len(bucket_sizes(LARGER))
    assert by_sample(chosen(feed, 7)).keys() < by_sample(first).keys()


def test_what_is_validated_is_never_trained(shards: Path, tmp_path: Path) -> None:
    feed = held_feed(shards, tmp_path)
    trained = {int(s) for step in range(feed.plan.steps(6)) for m in feed.plan.step(step) for s in m.samples}
    assert trained
    assert not trained & by_sample(chosen(feed, 1000)).keys()


def test_every_decile_of_the_timesteps_has_its_share(shards: Path, tmp_path: Path) -> None:
    fixed = chosen(held_feed(shards, tmp_path), 24)
    deciles, timesteps = (np.concatenate([getattr(f, name) for f in fixed]) for name in ("deciles", "timesteps"))
    assert (timesteps // 100 == deciles).all()
    assert set(Counter(deciles.tolist()).values()) <= {2, 3}
    assert len(Counter(deciles.tolist())) == 10


def test_a_sample_that_cannot_be_read_is_left_out(shards: Path, tmp_path: Path) -> None:
    feed = held_feed(shards, tmp_path)
    (before,) = validated(feed, 16)
    lost = min(by_sample(chosen(feed, 16)))
    index = feed.sources.all[0].index
    span = index.spans(feed.sources.all[0].row(place_of(lost)))["image"]
    with Path(span.location).open("r+b") as shard:
        shard.seek(span.offset)
        shard.write(b"\0" * span.size)
    (after,) = validated(feed, 16)
    assert (before["samples"], after["samples"]) == (16, 15)


def test_means_are_those_of_the_samples() -> None:
    outcomes = [Outcome(3, 0, "tall", 1.0), Outcome(1, 9, "wide", 2.0), Outcome(2, 9, "tall", 6.0)]
    found = summary(outcomes)
    assert found == summary(outcomes[::-1])
    assert found["loss"] == 3.0
    assert found["by_decile"] == [1.0, *[None] * 8, 4.0]
    assert found["by_aspect"] == {"tall": 3.5, "square": None, "wide": 2.0}


def test_nothing_to_validate_is_a_mistake(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.held_out holds out no sample"):
        chosen(held_feed(shards, tmp_path, held=1e-9), 16)
