"""The plan: pure, exact, shuffled, in proportion, and the same for any world."""

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.buckets import I64, NONE
from finetune.data.layout import Layout, SourceSamples
from finetune.data.plan import FILL, Chapter, Draw, MicroBatch, Plan, _last
from finetune.data.samples import ids_of_rows, place_of

SIZES = np.array([[64, 128], [96, 96], [128, 64], [48, 160]])


@dataclass(frozen=True)
class Made:
    """Shards of a source by their numbers of samples."""

    shards: tuple[int, ...]
    repeats: Fraction = Fraction(1)
    times: tuple[int, ...] = (1,)
    """Cycled over the samples."""
    left_out: int = 0
    """Every so manieth sample is left out; 0 for none."""


@dataclass(frozen=True)
class Recipe:
    editions: tuple[tuple[int, tuple[Made, ...]], ...]
    """(first epoch, sources)."""
    micro_batch: int = 2
    per_step: int = 2
    window_shards: int = 2
    seed: int = 0
    spread: int = 4

    def plan(self, seed: int | None = None) -> Plan:
        seed = self.seed if seed is None else seed
        layouts = [
            Layout(
                [samples(number, made, self.spread) for number, made in enumerate(sources)],
                SIZES,
                window_shards=self.window_shards,
                seed=seed,
                first_epoch=first,
            )
            for first, sources in self.editions
        ]
        chapters = [Chapter(layout, self.micro_batch) for layout in layouts]
        return Plan(chapters, SIZES, global_batch=self.micro_batch * self.per_step, seed=seed)


def samples(number: int, made: Made, spread: int = 4) -> SourceSamples:
    """Sample k of a source belongs to bucket hash(k) % spread."""
    first_rows = np.cumsum([0, *made.shards])
    rows = np.arange(first_rows[-1])
    buckets = (rows * 7919 % 97 % spread).astype(np.uint16)
    if made.left_out:
        buckets[rows % made.left_out == made.left_out - 1] = NONE
    times = np.resize(made.times, len(rows)) if made.times != (1,) else None
    return SourceSamples(number, first_rows, buckets, made.repeats, times)


def one(*shards: int, **options: int) -> Plan:
    return Recipe(((0, (Made(shards),)),), **options).plan()  # type: ignore[arg-type]


def draws(plan: Plan, steps: range) -> list[Draw]:
    return [draw for step in steps for micro_batch in plan.step(step) for draw in micro_batch.draws]


MADE = st.builds(
    Made,
    st.lists(st.integers(1, 20), min_size=1, max_size=5).map(tuple),
    st.sampled_from([Fraction(1), Fraction(2), Fraction(1, 2), Fraction(3, 7), Fraction(5, 2)]),
    st.sampled_from([(1,), (1, 1, 3)]),
    st.sampled_from([0, 0, 5]),
)
SOURCES = st.lists(MADE, min_size=1, max_size=3).map(tuple)
RECIPES = st.builds(
    Recipe,
    SOURCES.map(lambda sources: ((0, (Made((12, 9)), *sources)),)),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)
EPOCHS = 3


def expected_draws(source: SourceSamples, row: int, first: int, end: int, tolerance: int) -> tuple[int, int]:
    """The fewest and the most draws of a row over some epochs: its share, give or take the fraction's rounding."""
    factor = 1 if source.times is None else int(source.times[row])
    share = source.repeats * factor * (end - first)
    return (share.__floor__() - tolerance, share.__ceil__() + tolerance)


@settings(deadline=None, max_examples=40)
@given(RECIPES)
def test_every_sample_is_drawn_as_often_as_its_repeats_say(recipe: Recipe) -> None:
    plan = recipe.plan()
    # A rare bucket's last draws wait for the next epochs', so more are run until all of the first three are through.
    steps = plan.steps(EPOCHS + 2 + 2 * recipe.micro_batch)
    drawn = [draw for draw in draws(plan, range(steps)) if draw.epoch < EPOCHS]
    assert len(set(drawn)) == len(drawn)
    counts = Counter(draw.sample for draw in drawn)
    per_epoch = Counter((draw.epoch, draw.sample) for draw in drawn)
    for number, made in enumerate(recipe.editions[0][1]):
        source = samples(number, made)
        for row, sample in enumerate(ids_of_rows(np.arange(len(source.buckets)), number, source.first_rows).tolist()):
            if source.buckets[row] == NONE:
                assert sample not in counts
                continue
            low, high = expected_draws(source, row, 0, EPOCHS, 0)
            assert low <= counts[sample] <= high
            for epoch in range(EPOCHS):
                low, high = expected_draws(source, row, epoch, epoch + 1, 0)
                assert low <= per_epoch[epoch, sample] <= high


@settings(deadline=None, max_examples=40)
@given(RECIPES)
def test_micro_batches_are_of_one_bucket_and_every_step_is_full(recipe: Recipe) -> None:
    plan = recipe.plan()
    sources = [samples(number, made) for number, made in enumerate(recipe.editions[0][1])]
    for step in range(plan.steps(2)):
        micro_batches = plan.step(step)
        assert len(micro_batches) == recipe.per_step
        assert [m.first_slot for m in micro_batches] == [i * recipe.micro_batch for i in range(recipe.per_step)]
        areas = [int(SIZES[m.bucket].prod()) for m in micro_batches]
        assert areas == sorted(areas, reverse=True)
        for batch in micro_batches:
            assert len(batch.samples) == recipe.micro_batch
            for draw in batch.draws:
                place = place_of(draw.sample)
                source = sources[place.source]
                assert source.buckets[source.first_rows[place.shard] + place.ordinal] == batch.bucket


@settings(deadline=None, max_examples=30)
@given(RECIPES, st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_step_does_not_depend_on_which_were_asked_for_before(recipe: Recipe, asked: list[int]) -> None:
    used, fresh = recipe.plan(), recipe.plan()
    for step in asked:
        used.step(step)
    assert draws(used, range(asked[-1], asked[-1] + 2)) == draws(fresh, range(asked[-1], asked[-1] + 2))


@settings(deadline=None, max_examples=30)
@given(RECIPES, st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_a_world_only_slices_a_step(recipe: Recipe, world: int) -> None:
    """Rank r takes r, r + W, …: whatever the world, the ranks together train the step's draws in their slots."""
    plan = recipe.plan()
    for step in range(3):
        slots = [
            (micro_batch.first_slot, micro_batch.samples.tolist())
            for rank in range(world)
            for micro_batch in plan.step(step)[rank::world]
        ]
        assert sorted(slots) == [(m.first_slot, m.samples.tolist()) for m in plan.step(step)]


@settings(deadline=None, max_examples=30)
@given(RECIPES, st.sampled_from([2, 3, 4]), st.integers(1, 2))
def test_ranks_wait_for_one_another_as_little_as_they_can(recipe: Recipe, world: int, accumulated: int) -> None:
    """Whatever the areas: if ranks meet after every micro-batch, no other way to deal them out waits less, and all
    waits together are at most the largest area less the smallest; if they meet once a step, so is the wait of any."""
    plan = replace(recipe, per_step=world * accumulated).plan()
    areas = np.array([int(SIZES[m.bucket].prod()) for m in plan.step(0)])
    ranks = np.stack([areas[rank::world] for rank in range(world)])  # [world, accumulated]
    assert ranks.sum() == areas.sum()
    spread = areas.max() - areas.min()
    assert np.ptp(ranks, axis=0).sum() <= spread
    assert np.ptp(ranks.sum(axis=1)) <= spread
    others = (np.array(first) for first in combinations(areas, world))
    if accumulated == 2:  # the largest of those that go first, and of all others
        fewest = min(first.max() + _without(areas, first).max() for first in others)
        assert ranks.max(axis=0).sum() == fewest


def _without(areas: I64, some: I64) -> I64:
    left = Counter(areas.tolist()) - Counter(some.tolist())
    return np.array(list(left.elements()))


@settings(deadline=None, max_examples=30)
@given(SOURCES, st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_an_edition_begins_at_an_epoch_s_border_and_closes_the_one_before(
    added: tuple[Made, ...], micro_batch: int, per_step: int, border: int
) -> None:
    before, after = Made((12, 9)), Made((12, 9, 7))
    with_added = (after, *added)
    recipe = Recipe(((0, (before, *added)), (border, with_added)), micro_batch=micro_batch, per_step=per_step)
    plan, unchanged = recipe.plan(), Recipe(recipe.editions[:1], micro_batch=micro_batch, per_step=per_step).plan()
    safe = unchanged.first_step(border) if border else 0
    # Up to the border nothing moves.
    for step in range(max(safe - 1, 0)):
        assert [m.samples.tolist() for m in plan.step(step)] == [m.samples.tolist() for m in unchanged.step(step)]
    every = draws(plan, range(plan.steps(border + 2)))
    assert len(set(every)) == len(every)
    first = [draw for draw in every if draw.epoch < border]
    own = Counter(place_of(d.sample).source for d in first if d.repeat < FILL)
    assert own[0] == border * 21
    assert all(place_of(d.sample).shard < 2 for d in first if place_of(d.sample).source == 0)
    filled = [draw for draw in first if draw.repeat >= FILL]
    assert len(filled) < (len(SIZES) + per_step) * micro_batch
    # A step is of one edition.
    assert plan.draws(border) % (micro_batch * per_step) == 0
    assert plan.first_step(border) * micro_batch * per_step == plan.draws(border)
    for step in range(plan.steps(border + 1)):
        assert len({draw.epoch < border for m in plan.step(step) for draw in m.draws}) == 1
    assert any(place_of(d.sample)[:2] == (0, 2) for d in every if d.epoch >= border)


def test_the_sources_are_mixed_in_proportion_in_every_window() -> None:
    recipe = Recipe(
        ((0, (Made((60,) * 12), Made((50,), Fraction(3)), Made((40,) * 3, Fraction(1, 2)))),), window_shards=2
    )
    plan = recipe.plan()
    windows = plan.window_count(0)
    assert windows == 6
    layout = plan.chapter(0).layout
    counts = [Counter(place_of(int(s)).source for s in layout.window(0, w).samples) for w in range(windows)]
    for count in counts:
        assert count[0] == 120
        assert abs(count[1] - 150 / windows) <= 1
        assert abs(count[2] - layout.epoch(0).units[2].drawn[-1].sum() / windows) <= 1


def test_repeats_of_a_sample_are_spread_over_the_epoch() -> None:
    layout = Recipe(((0, (Made((60,) * 6, Fraction(3)),)),)).plan().chapter(0).layout
    for window in range(9):
        samples_drawn = layout.window(0, window).samples
        assert len(set(samples_drawn.tolist())) == len(samples_drawn)


def rank_correlation(first: list[Draw], second: list[Draw]) -> float:
    """Spearman's, between the places that each sample has in two orders."""
    places = {draw.sample: i for i, draw in enumerate(first)}
    others = {draw.sample: i for i, draw in enumerate(second)}
    common = sorted(places.keys() & others.keys())
    return float(np.corrcoef([places[s] for s in common], [others[s] for s in common])[0, 1])


def test_seeds_and_epochs_have_unrelated_orders() -> None:
    recipe = Recipe(((0, (Made((50,) * 40),)),), micro_batch=4, window_shards=4)
    orders = {}
    for seed in (1, 2):
        plan = recipe.plan(seed)
        every = draws(plan, range(plan.steps(4)))
        orders |= {(seed, epoch): [d for d in every if d.epoch == epoch] for epoch in range(3)}
    names = list(orders)
    # Shards move as blocks, so chance is that of 10 windows' places and not of 2,000 samples'.
    for i, one_name in enumerate(names):
        for other in names[i + 1 :]:
            assert abs(rank_correlation(orders[one_name], orders[other])) < 3.5 / 40**0.5, (one_name, other)
    assert [d.sample for d in orders[1, 2]] != [d.sample for d in orders[2, 1]]


def test_windows_keep_reads_close_together() -> None:
    plan = one(*[40] * 12, micro_batch=4, per_step=2, window_shards=3, spread=1)
    for window, first in enumerate(range(0, plan.steps(1), 15)):  # 15 steps of 8 are one window of 3 shards of 40
        micro_batches = [m for step in range(first, first + 15) for m in plan.step(step)]
        assert {m.window for m in micro_batches} == {(0, window)}
        shards = {(0, place_of(d.sample).shard) for m in micro_batches for d in m.draws}
        assert shards == plan.shards_in(0, window)
        assert len(shards) == 3


def test_the_windows_from_a_step_on() -> None:
    plan = one(*[40] * 4, micro_batch=4, per_step=2, window_shards=2, spread=1)
    windows = plan.windows(12)
    assert [next(windows) for _ in range(4)] == [(0, 1), (1, 0), (1, 1), (2, 0)]


@settings(deadline=None, max_examples=40)
@given(RECIPES, st.integers(1, 3))
def test_what_comes_after_a_step_s_window(recipe: Recipe, border: int) -> None:
    """Of one chapter and of two: the first step of which nothing was emitted by the step's windows or before."""
    first = recipe.editions[0][1]
    for editions in (recipe.editions, (*recipe.editions, (border, (first[0], *first)))):
        plan = replace(recipe, editions=editions).plan()
        emitting = [[m.window for m in plan.step(step)] for step in range(plan.steps(border + 2))]
        for step in range(plan.steps(border + 1)):
            found = plan.after_window(step)
            later = (s for s, windows in enumerate(emitting) if min(windows) > max(emitting[step]))
            assert found == next(later, found)
            assert found > step
            assert found <= plan.after_window(step + 1)


def test_a_step_of_two_windows_is_after_both() -> None:
    # 40 samples a window in micro-batches of 4, 3 to a step: windows emit 10, which are 3 steps and a third.
    plan = one(*[40] * 4, micro_batch=4, per_step=3, window_shards=1, spread=1)
    assert [plan.after_window(step) for step in range(8)] == [4, 4, 4, 7, 7, 7, 10, 10]


def test_lengths_in_epochs() -> None:
    plan = one(100, micro_batch=4, per_step=2)
    assert plan.draws(1) == 100
    assert plan.steps(1) == 13
    assert plan.steps(2) == 25
    assert plan.epoch(25) == 2.0
    assert plan.steps(0.5) == 7
    assert plan.epoch_of_step(0) == 0
    assert plan.epoch_of_step(20) == 1


def test_a_rare_bucket_s_draws_wait_for_their_micro_batch() -> None:
    # 5 samples of a bucket in micro-batches of 4: the fifth is trained with the next epoch's first three.
    buckets = np.array([0] * 16 + [1] * 5, dtype=np.uint16)
    source = SourceSamples(0, np.array([0, 21]), buckets, Fraction(1))
    plan = Plan([Chapter(Layout([source], SIZES, window_shards=1, seed=3), 4)], SIZES, global_batch=4, seed=3)
    rare = [m for step in range(12) for m in plan.step(step) if m.bucket == 1]
    assert rare[0].epochs.tolist() == [0, 0, 0, 0]
    assert rare[1].epochs.tolist() == [0, 1, 1, 1]
    assert set(rare[0].samples.tolist()) | {int(rare[1].samples[0])} == set(range(16, 21))


@pytest.mark.parametrize("near", [True, False])
def test_neighbours_are_of_the_bucket(near: bool) -> None:
    recipe = Recipe(((0, (Made((30, 30, 30)),)),))
    plan, source = recipe.plan(), samples(0, Made((30, 30, 30)))
    micro_batch: MicroBatch = plan.step(3)[0]
    found = [plan.neighbour(micro_batch, bits, near=near) for bits in range(0, 4000, 37)]
    places = [place_of(draw.sample) for draw in found]
    assert {int(source.buckets[p.shard * 30 + p.ordinal]) for p in places} == {micro_batch.bucket}
    shards = {(0, place_of(d.sample).shard) for d in found}
    assert shards <= plan.shards_in(*micro_batch.window) if near else len(shards) == 3


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_last_epoch_is_found_from_any_guess(last: int, guess: int) -> None:
    looked: list[int] = []

    def reached(epoch: int) -> bool:
        looked.append(epoch)
        return epoch <= last

    assert _last(reached, guess) == last
    assert len(looked) <= 2 * abs(guess - last).bit_length() + 4


def two_shapes(border: int, first: int, second: int, per_step: int, shards: tuple[int, ...]) -> Plan:
    """A plan whose samples lie in other buckets and micro-batches from an epoch on."""
    made = Made(shards)
    before, after = (
        Layout([samples(0, made, spread)], SIZES, window_shards=2, seed=1, first_epoch=epoch)
        for epoch, spread in ((0, 3), (border, 2))
    )
    chapters = [Chapter(before, first), Chapter(after, second, len(SIZES))]
    return Plan(chapters, np.concatenate([SIZES, 2 * SIZES]), global_batch=first * second * per_step, seed=1)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(5, 20), min_size=1, max_size=4).map(tuple),
)
def test_a_shape_changes_at_an_epoch_s_border_and_nothing_is_lost(
    border: int, first: int, second: int, per_step: int, shards: tuple[int, ...]
) -> None:
    plan = two_shapes(border, first, second, per_step, shards)
    begins, end = plan.first_step(border), plan.steps(border + 6)
    assert begins == plan.steps(border)
    for step in range(end):
        micro_batches = plan.step(step)
        of_second = step >= begins
        size = second if of_second else first
        assert plan.micro_batch(step) == size
        assert [len(m.samples) for m in micro_batches] == [size] * (plan.global_batch // size)
        assert [m.first_slot for m in micro_batches] == list(range(0, plan.global_batch, size))
        assert all((m.bucket >= len(SIZES)) == of_second for m in micro_batches)
        assert all((d.epoch >= border) == of_second for m in micro_batches for d in m.draws)
    every = draws(plan, range(end))
    assert len(set(every)) == len(every)
    for epoch in range(border + 1):
        drawn = [d.sample for d in every if d.epoch == epoch and d.repeat < FILL]
        assert sorted(drawn) == ids_of_rows(np.arange(sum(shards)), 0, np.cumsum([0, *shards])).tolist()


def test_the_largest_micro_batch_of_what_is_still_to_come() -> None:
    plan = two_shapes(1, 4, 1, 2, (20, 20))
    assert plan.largest(0) == (4, 96, 96)
    assert plan.largest(plan.first_step(1)) == (1, 192, 192)


def test_a_shape_may_begin_elsewhere_until_its_border_has_shaped_a_step() -> None:
    shards = (20, 20)
    plan, later = two_shapes(2, 4, 2, 1, shards), two_shapes(3, 4, 2, 1, shards)
    moved = next(
        step for step in range(100) if draws(plan, range(step, step + 1)) != draws(later, range(step, step + 1))
    )
    assert plan.settled(moved) == []
    assert plan.settled(plan.first_step(2)) == [2]
    # What has been done under the one plan is what the other would have done, as long as nothing is settled.
    free = max(step for step in range(plan.first_step(2) + 1) if plan.settled(step) == [])
    assert draws(plan, range(free)) == draws(later, range(free))
