"""Micro-batches: the same from any number of workers and ranks, and never lost to a bad sample."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.config import BucketsConfig, CaptionsConfig, DataConfig
from finetune.data.index import Index
from finetune.data.loader import Batch, LatentShape, MicroBatches, open_loader
from finetune.data.plan import Plan
from finetune.data.prepare import build_plan
from finetune.data.source import ShardSource
from finetune.errors import UserError

STEPS = 4


def length(prompts: list[str]) -> np.ndarray:
    """A stand-in for the tokenizer that tells prompts apart: int64 [prompts, 1, 77]."""
    rows = [[ord(c) for c in p.ljust(77)[:77]] for p in prompts]
    return np.array(rows, dtype=np.int64)[:, None]


def settings(folder: Path, **changes: object) -> DataConfig:
    buckets = BucketsConfig(resolution_px=64, max_side_px=96, step_px=16)
    return DataConfig(shards=str(folder), buckets=buckets, flip=0.5, random_crop=True, window_shards=1, **changes)  # type: ignore[arg-type]


def dataset(folder: Path, rank: int = 0, world: int = 1, seed: int = 5, first: int = 0) -> tuple[MicroBatches, Plan]:
    index = Index.load(folder)
    data = settings(folder)
    plan = build_plan(index, data, micro_batch=4, global_batch=16, seed=seed)
    batches = MicroBatches(
        plan,
        ShardSource(index, "auto"),
        length,
        data,
        CaptionsConfig(tag_drop=0.1),
        LatentShape(4, 8),
        timesteps=1000,
        seed=seed,
        steps=range(first, STEPS),
        rank=rank,
        world=world,
    )
    return batches, plan


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_shapes_follow_the_bucket(shards: Path) -> None:
    batches, plan = dataset(shards)
    width, height = (int(s) for s in plan.sizes[plan.step(0)[0].bucket])
    batch = batches[0]
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape == (4, 3, height, width)
    assert (
        batch.noise.shape == batch.perturbation.shape == batch.posterior_noise.shape == (4, 4, height // 8, width // 8)
    )
    assert ((batch.timesteps >= 0) & (batch.timesteps < 1000)).all()


def test_ranks_share_out_the_steps_of_one(shards: Path) -> None:
    alone, _ = dataset(shards)
    for world in (2, 4):
        ranks = [dataset(shards, rank, world)[0] for rank in range(world)]
        for item in range(len(alone)):
            rank, own = item % world, item // 4 * (4 // world) + item % 4 // world
            assert same(alone[item], ranks[rank][own])


def test_starting_later_gives_the_same_batches(shards: Path) -> None:
    whole, _ = dataset(shards)
    later, _ = dataset(shards, first=2)
    assert len(later) == 8
    assert all(same(whole[8 + i], later[i]) for i in range(8))


def test_workers_change_nothing(shards: Path) -> None:
    batches, _ = dataset(shards)
    alone = list(open_loader(batches, settings(shards, workers=0), pin=False))
    shared = list(open_loader(batches, settings(shards, workers=2), pin=False))
    assert len(alone) == 16
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_draws_of_one_sample_differ_by_epoch_and_seed(shards: Path) -> None:
    batches, plan = dataset(shards)
    other, _ = dataset(shards, seed=6)
    assert not torch.equal(batches[0].noise, other[0].noise)
    preparer = batches._preparer
    row, bucket = int(plan.step(0)[0].rows[0]), plan.step(0)[0].bucket
    prepared = [preparer.sample(row, bucket, epoch, 1) for epoch in range(8)]
    assert len({p.pixels.tobytes() for p in prepared}) > 1
    assert len({p.prompt for p in prepared}) > 1


def test_noises_are_independent(shards: Path) -> None:
    batch = dataset(shards)[0][0]
    flat = torch.stack([batch.noise, batch.perturbation, batch.posterior_noise]).flatten(1).double()
    correlation = torch.corrcoef(flat)
    assert (correlation - torch.eye(3)).abs().max() < 5 / flat.shape[1] ** 0.5


def test_timesteps_are_uniform(shards: Path) -> None:
    batches, _ = dataset(shards)
    drawn = torch.cat([batches[i].timesteps for i in range(len(batches))]).double()
    assert abs(drawn.mean() - 499.5) < 5 * 1000 / (12 * len(drawn)) ** 0.5
    assert len(drawn.unique()) > 0.9 * len(drawn)


def spoil(folder: Path, row: int) -> None:
    """Overwrite a picture's bytes without touching its tar header."""
    index = Index.load(folder)
    with index.shard_path(int(index.shard[row])).open("r+b") as file:
        file.seek(int(index.image_offset[row]))
        file.write(b"\0" * int(index.image_size[row]))


def test_a_bad_sample_is_replaced_and_named(make_shards: Callable[..., Path]) -> None:
    folder = make_shards("spoiled")
    whole = dataset(folder)[0]
    reference = [whole[i] for i in range(len(whole))]
    index = Index.load(folder)
    row = int(dataset(folder)[1].step(0)[0].rows[1])
    spoil(folder, row)
    batches, _ = dataset(folder)
    batch = batches[0]
    (bad,) = batch.bad
    assert (bad.step, bad.slot, bad.key) == (0, 1, index.key(row))
    assert bad.sample == int(index.sample_ids[row])
    assert bad.reason == "not a picture of any known format"
    assert bad.substitute != bad.sample
    # The others, and the slot's own noise and timestep, are as they would have been.
    assert torch.equal(batch.noise, reference[0].noise)
    assert torch.equal(batch.timesteps, reference[0].timesteps)
    assert torch.equal(batch.pixels[[0, 2, 3]], reference[0].pixels[[0, 2, 3]])
    assert not torch.equal(batch.pixels[1], reference[0].pixels[1])
    assert same(batch, dataset(folder)[0][0])


def test_a_bucket_of_bad_samples_ends_the_run(make_shards: Callable[..., Path]) -> None:
    folder = make_shards("spoiled")
    for row in range(len(Index.load(folder))):
        spoil(folder, row)
    with pytest.raises(UserError, match="could not be used: check the shards"):
        dataset(folder)[0][0]
