"""Micro-batches: the same from any number of workers and ranks, and never lost to a bad sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.batch import Batch, LatentShape, Packed
from finetune.data.config import DataConfig
from finetune.data.hashing import CounterRng, hash_counters, purpose_key, to_unit
from finetune.data.index import Index
from finetune.data.journal import EXCLUDED, QUARANTINED, Exclusion, Journal, Quarantine
from finetune.data.latents import area_sums
from finetune.data.loader import MicroBatches, latent_mask, open_loader
from finetune.data.noises import NoiseSource
from finetune.data.plan import Plan
from finetune.data.preparer import Preparer, Sample
from finetune.data.prompts.config import CaptionsConfig, TagsConfig
from finetune.data.prompts.prompter import Policy, Prompter
from finetune.data.samples import place_of
from finetune.diffusion.config import DiffusionConfig, NoiseConfig, SamplingConfig
from finetune.errors import UserError
from tests.helpers import WORDS, Letters, data_config, open_data

STEPS = 4
EVERYTHING = DiffusionConfig(
    noise=NoiseConfig(pyramid_levels=2, offset=0.1, offset_random=True, perturbation=0.1, perturbation_random=True),
    sampling=SamplingConfig(distribution="logit_normal", stratified=True),
)


def settings(folder: Path, **changes: object) -> DataConfig:
    return data_config(folder, **{"flip": 0.5, "random_crop": True, **changes})


class Unpacked(MicroBatches):
    def __getitem__(self, item: int) -> Any:
        found = super().__getitem__(item)
        return found.unpacked() if isinstance(found, Packed) else found


def dataset(
    folder: Path,
    rank: int = 0,
    world: int = 1,
    seed: int = 5,
    first: int = 0,
    change: Callable[[Journal], Journal] = lambda journal: journal,
    policy: Policy | None = None,
    flip: float = 0.5,
    diffusion: DiffusionConfig | None = None,
    kind: type[MicroBatches] = Unpacked,
) -> tuple[Any, Plan]:
    data = settings(folder, flip=flip)
    opened = open_data(data, folder / "kept", seed=seed)
    journal = change(opened.began())
    plan, sources = opened.plan(journal), opened.sources(journal)
    policy = policy or Policy(Prompter(CaptionsConfig(tags=TagsConfig(drop=0.1)), seed), 1.0)
    batches = kind(
        plan,
        journal,
        Preparer(plan, sources, data, [policy], WORDS, seed),
        Letters(),
        LatentShape(4, 8),
        diffusion=diffusion or DiffusionConfig(),
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
    assert (batch.input_ids.shape, batch.chunk_rows.shape) == ((4, 1, 77), (4, 1))
    assert batch.noise.shape == batch.posterior_noise.shape == (4, 4, height // 8, width // 8)
    assert batch.offset.shape == (4, 4, 1, 1)
    assert batch.perturbation.shape == batch.mask.shape == (4, 1, 1, 1)
    assert ((batch.timesteps >= 0) & (batch.timesteps < 1000)).all()


def test_facts_are_those_of_the_prompts(shards: Path) -> None:
    batches, plan = dataset(shards, policy=Policy(Prompter(CaptionsConfig(tags=TagsConfig(drop=0.5)), 5), 1.0))
    preparer, seen = batches._preparer, set()
    for item in range(8):
        step, micro_batch = item // 4, plan.step(item // 4)[item % 4]
        for draw, facts in zip(micro_batch.draws, batches[item].facts, strict=True):
            record = preparer._sources.read(draw.sample, draw.epoch, whole_shard=True)
            prompt = preparer.prompt(record, draw, step)
            assert facts == (prompt.tokens, len(prompt.tags), prompt.dropped, False, None)
            assert facts.tokens == len(prompt.text.split())
            seen.add(facts.dropped_tags)
    assert seen == {0, 1}


def test_a_batch_is_moved_whole(shards: Path) -> None:
    batch = dataset(shards)[0][0]
    assert same(batch.to(torch.device("cpu")), batch)
    moved = batch.to(torch.device("meta"))
    assert all(part.is_meta for part in moved if isinstance(part, Tensor))
    assert (moved.bad, moved.facts) == (batch.bad, batch.facts)


def test_perturbation_is_there_where_it_is_asked_for(shards: Path) -> None:
    batch = dataset(shards, diffusion=EVERYTHING)[0][0]
    assert batch.perturbation.shape == batch.noise.shape


def test_plain_noise_and_timesteps_are_the_streams_of_draws_and_slots(shards: Path) -> None:
    batches, plan = dataset(shards)
    for item in (0, 5):
        step, micro_batch = item // 4, plan.step(item // 4)[item % 4]
        batch = batches[item]
        for i, draw in enumerate(micro_batch.draws):
            rng = CounterRng(purpose_key(5, "noise"), draw.epoch, draw.sample, draw.repeat)
            noise, _, posterior = rng.normal((3, *batch.noise.shape[1:]))
            assert torch.equal(batch.noise[i], torch.from_numpy(noise))
            assert torch.equal(batch.posterior_noise[i], torch.from_numpy(posterior))
        slots = micro_batch.first_slot + np.arange(4)
        quantiles = to_unit(hash_counters(purpose_key(5, "timestep"), step, slots))
        assert batch.timesteps.tolist() == (quantiles * 1000).astype(int).tolist()


def test_all_noises_are_those_of_the_draws(shards: Path) -> None:
    batches, plan = dataset(shards, diffusion=EVERYTHING)
    batch, source = batches[0], NoiseSource(EVERYTHING.noise, 5)
    for i, draw in enumerate(plan.step(0)[0].draws):
        noises = source.draw(draw, tuple(batch.noise.shape[1:]))
        assert noises.offset.abs().min() > 0.0
        found = (batch.noise[i], batch.offset[i], batch.perturbation[i], batch.posterior_noise[i])
        assert all(torch.equal(a, b) for a, b in zip(found, noises, strict=True))


def test_timesteps_may_be_given(shards: Path) -> None:
    batches, plan = dataset(shards, diffusion=EVERYTHING)
    given = np.array([3, 1, 4, 1])
    batch = batches.prepare(1, plan.step(1)[2], given)
    assert batch.timesteps.tolist() == given.tolist()
    assert same(batch._replace(timesteps=batches[6].timesteps), batches[6])


def test_no_flip_keeps_pictures_from_being_mirrored(shards: Path) -> None:
    def pixels(flip: float, *no_flip: str) -> Tensor:
        policy = Policy(Prompter(CaptionsConfig(no_flip=list(no_flip)), 5), 1.0)
        return dataset(shards, policy=policy, flip=flip)[0][0].pixels

    assert torch.equal(pixels(1.0), pixels(0.0).flip(-1))
    assert torch.equal(pixels(1.0, "tag *"), pixels(0.0))
    assert torch.equal(pixels(1.0, "picture number"), pixels(0.0))
    assert torch.equal(pixels(1.0, "nothing"), pixels(1.0))


@pytest.mark.parametrize("diffusion", [DiffusionConfig(), EVERYTHING], ids=["plain", "everything"])
def test_ranks_share_out_the_steps_of_one(shards: Path, diffusion: DiffusionConfig) -> None:
    alone, _ = dataset(shards, diffusion=diffusion)
    for world in (2, 4):
        ranks = [dataset(shards, rank, world, diffusion=diffusion)[0] for rank in range(world)]
        for item in range(len(alone)):
            rank, own = item % world, item // 4 * (4 // world) + item % 4 // world
            assert same(alone[item], ranks[rank][own])


def test_starting_later_gives_the_same_batches(shards: Path) -> None:
    whole, _ = dataset(shards)
    later, _ = dataset(shards, first=2)
    assert len(later) == 8
    assert all(same(whole[8 + i], later[i]) for i in range(8))


@pytest.mark.parametrize("diffusion", [DiffusionConfig(), EVERYTHING], ids=["plain", "everything"])
def test_workers_change_nothing(shards: Path, diffusion: DiffusionConfig) -> None:
    batches, _ = dataset(shards, diffusion=diffusion, kind=MicroBatches)
    alone, shared = (
        [one.unpacked() for one in open_loader(batches, settings(shards, workers=workers), pin=False)]
        for workers in (0, 2)
    )
    assert len(alone) == 16
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_draws_of_one_sample_differ_by_epoch_and_seed(shards: Path) -> None:
    batches, plan = dataset(shards)
    other, _ = dataset(shards, seed=6)
    assert not torch.equal(batches[0].noise, other[0].noise)
    micro_batch = plan.step(0)[0]
    prepared = [
        batches._preparer.prepare(0, replace(micro_batch, epochs=micro_batch.epochs + epoch), {}, [])[0]
        for epoch in range(8)
    ]
    assert len({p.pixels.tobytes() for p in prepared}) > 1
    assert len({p.prompt for p in prepared}) > 1
    repeated = replace(micro_batch, repeats=micro_batch.repeats + 1)
    assert not torch.equal(batches.prepare(0, repeated).noise, batches[0].noise)


def test_size_and_crop_follow_the_picture(shards: Path) -> None:
    batches, plan = dataset(shards)
    index = Index.load(shards)
    for item in range(4):
        micro_batch, batch = plan.step(0)[item], batches[item]
        bucket_width, bucket_height = (int(side) for side in plan.sizes[micro_batch.bucket])
        for draw, (height, width, top, left, *target) in zip(
            micro_batch.draws, batch.size_and_crop.tolist(), strict=True
        ):
            place = place_of(draw.sample)
            row = index.first_rows[place.shard] + place.ordinal
            assert (width, height) == (index.width[row], index.height[row])
            assert target == [bucket_height, bucket_width]
            scale = max(bucket_width / width, bucket_height / height)
            assert 0 <= left <= round(width * scale) - bucket_width
            assert 0 <= top <= round(height * scale) - bucket_height


def test_a_mirrored_crop_is_told_in_the_mirrored_picture(shards: Path) -> None:
    """Crops of one draw with and without its flip: their left edges add up to what is cut away."""
    batches, plan = dataset(shards)
    micro_batch = max((m for step in range(STEPS) for m in plan.step(step)), key=lambda m: plan.sizes[m.bucket][1])
    preparer = batches._preparer
    config = preparer._data
    lefts = []
    for flip in (0.0, 1.0):
        preparer._data = replace(config, flip=flip)
        prepared = preparer.prepare(0, micro_batch, {}, [])
        lefts.append([sample.size_and_crop[3] for sample in prepared])
    sizes = [sample.size_and_crop for sample in prepared]
    for a, b, (height, width, _, _, bucket_height, bucket_width) in zip(*lefts, sizes, strict=True):
        scaled = round(width * max(bucket_width / width, bucket_height / height))
        assert a + b == scaled - bucket_width


def test_a_source_s_loss_weight_comes_with_its_samples(shards: Path) -> None:
    batches, _ = dataset(shards, policy=Policy(Prompter(CaptionsConfig(), 5), 0.25))
    assert batches[0].loss_weights.tolist() == [0.25] * 4


def test_noises_are_independent(shards: Path) -> None:
    batch = dataset(shards, diffusion=DiffusionConfig(noise=NoiseConfig(perturbation=0.1)))[0][0]
    flat = torch.stack([batch.noise, batch.perturbation, batch.posterior_noise]).flatten(1).double()
    correlation = torch.corrcoef(flat)
    assert (correlation - torch.eye(3)).abs().max() < 5 / flat.shape[1] ** 0.5


def test_timesteps_are_uniform(shards: Path) -> None:
    batches, _ = dataset(shards)
    drawn = torch.cat([batches[i].timesteps for i in range(len(batches))]).double()
    assert abs(drawn.mean() - 499.5) < 5 * 1000 / (12 * len(drawn)) ** 0.5
    assert len(drawn.unique()) > 0.9 * len(drawn)


def test_stratified_timesteps_are_one_of_each_part(shards: Path) -> None:
    """A step's 16 timesteps in order: the k-th lies in the k-th sixteenth of 1000."""
    batches, plan = dataset(shards, diffusion=DiffusionConfig(sampling=SamplingConfig(stratified=True)))
    orders = []
    for step in range(STEPS):
        drawn = torch.cat([batches.prepare(step, micro_batch).timesteps for micro_batch in plan.step(step)])
        for stratum, timestep in enumerate(drawn.sort().values.tolist()):
            assert int(stratum * 62.5) <= timestep <= (stratum + 1) * 62.5
        orders.append(tuple(drawn.argsort().tolist()))
    assert len(set(orders)) == STEPS
    assert tuple(range(16)) not in orders


def test_the_stratum_does_not_follow_from_the_slot(shards: Path) -> None:
    """Slots are in the order of their areas: over many steps every slot's mean timestep is that of all."""
    batches, plan = dataset(shards, diffusion=DiffusionConfig(sampling=SamplingConfig(stratified=True)))
    micro_batch = plan.step(0)[0]
    drawn = torch.stack([batches._draw_timesteps(step, micro_batch) for step in range(2000)]).double()
    deviation = 1000 / 12**0.5
    assert ((drawn.mean(dim=0) - 499.5).abs() < 5 * deviation / 2000**0.5).all()
    # Two slots never share a part, so their timesteps are correlated by -1/15 at most.
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 1 / 15 + 5 / 2000**0.5


def test_a_latent_s_mask_is_the_mean_over_its_pixels() -> None:
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[0, 0] = mask[:2, 2:4] = 255
    mask[3, 5] = 51
    found = latent_mask([None, area_sums(mask, 2)], 2)
    assert found.shape == (2, 1, 2, 3)
    assert found.dtype == torch.float32
    assert (found[0] == 1.0).all()
    assert found[1, 0].tolist() == [[0.25, 1.0, 0.0], [0.0, 0.0, pytest.approx(0.05)]]
    assert torch.equal(latent_mask([None, None, None], 2), torch.ones(3, 1, 1, 1))


def test_masks_come_with_their_samples(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, _ = dataset(shards)
    prepare = batches._preparer.prepare

    def masked(*args: object) -> list[Sample]:
        first, second, *others = prepare(*args)  # type: ignore[arg-type]
        height, width = first.pixels.shape[:2]
        return [first, second._replace(mask=np.zeros((height, width), dtype=np.uint8)), *others]

    monkeypatch.setattr(batches._preparer, "prepare", masked)
    found = batches[0]
    assert found.mask.shape == (4, 1, *found.noise.shape[2:])
    assert found.mask.mean(dim=(1, 2, 3)).tolist() == [1.0, 0.0, 1.0, 1.0]


def spoil(folder: Path, row: int) -> None:
    """Overwrite a picture's bytes without touching its tar header."""
    span = Index.load(folder).spans(row)["image"]
    with Path(span.location).open("r+b") as file:
        file.seek(span.offset)
        file.write(b"\0" * span.size)


def test_a_bad_sample_is_replaced_and_named(make_shards: Callable[..., Path]) -> None:
    folder = make_shards("spoiled")
    whole = dataset(folder)[0]
    reference = [whole[i] for i in range(len(whole))]
    index = Index.load(folder)
    draw = dataset(folder)[1].step(0)[0].draws[1]
    place = place_of(draw.sample)
    row = int(index.first_rows[place.shard]) + place.ordinal
    spoil(folder, row)
    batches, _ = dataset(folder)
    batch = batches[0]
    (bad,) = batch.bad
    assert (bad.step, bad.slot, bad.key) == (1, 1, index.key(row))
    assert bad.sample == draw.sample
    assert bad.shard == index.shards[place.shard].name
    assert bad.reason == "not a picture of any known format"
    check_replaced(batch, reference[0], bad.sample, bad.substitute)
    assert same(batch, dataset(folder)[0][0])


def check_replaced(batch: Batch, reference: Batch, sample: int, substitute: int) -> None:
    """The second slot's picture is another; the others, and the slot's own noise and timestep, are as they were."""
    assert substitute != sample
    assert torch.equal(batch.noise, reference.noise)
    assert torch.equal(batch.timesteps, reference.timesteps)
    assert torch.equal(batch.pixels[[0, 2, 3]], reference.pixels[[0, 2, 3]])
    assert not torch.equal(batch.pixels[1], reference.pixels[1])


def test_an_exclusion_replaces_from_its_step_on(shards: Path) -> None:
    whole, plan = dataset(shards)
    first, later = plan.step(0)[0].draws[1].sample, plan.step(2)[0].draws[1].sample
    batches, _ = dataset(shards, change=lambda journal: journal.with_exclusion(Exclusion(1, (first, later))))
    assert same(batches[0], whole[0])
    (bad,) = batches[8].bad
    assert (bad.step, bad.slot, bad.sample, bad.reason) == (3, 1, later, EXCLUDED)
    check_replaced(batches[8], whole[8], later, bad.substitute)
    assert all(b.substitute not in (first, later) for i in range(len(batches)) for b in batches[i].bad)


def test_a_quarantine_replaces_as_an_exclusion_does(shards: Path) -> None:
    """The same substitutes, under another name, and none of what is quarantined among them."""
    _, plan = dataset(shards)
    samples = (plan.step(0)[0].draws[1].sample, plan.step(2)[0].draws[1].sample)
    excluded, _ = dataset(shards, change=lambda journal: journal.with_exclusion(Exclusion(1, samples)))
    quarantined, _ = dataset(shards, change=lambda journal: journal.with_quarantine(Quarantine(1, samples)))
    assert [batch.bad for batch in quarantined] == [
        [one._replace(reason=QUARANTINED) for one in batch.bad] for batch in excluded
    ]
    assert any(batch.bad for batch in quarantined)
    assert all(same(a._replace(bad=[]), b._replace(bad=[])) for a, b in zip(excluded, quarantined, strict=True))


def test_the_last_sample_of_a_bucket_stands_in_for_all_others(shards: Path) -> None:
    batches, plan = dataset(shards)
    bucket = plan.step(0)[0].bucket
    members = {d.sample for step in range(40) for m in plan.step(step) if m.bucket == bucket for d in m.draws}
    left = min(members)
    batches, _ = dataset(shards, change=lambda journal: journal.with_exclusion(Exclusion(0, tuple(members - {left}))))
    assert {bad.substitute for bad in batches[0].bad} == {left}


def test_a_bucket_of_bad_samples_ends_the_run(make_shards: Callable[..., Path]) -> None:
    folder = make_shards("spoiled")
    for row in range(len(Index.load(folder))):
        spoil(folder, row)
    for workers in (0, 1):
        with pytest.raises(UserError, match="could not be used: check the shards"):
            next(open_loader(dataset(folder)[0], settings(folder, workers=workers), pin=False))
