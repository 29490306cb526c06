"""The plan: pure, exact, shuffled, and the same for any world."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.buckets import I64, merge_rare
from finetune.data.plan import Plan

SIZES = np.array([[64, 128], [96, 96], [128, 64], [48, 160]])


def make_plan(
    shard_sizes: list[int], micro_batch: int, per_step: int, *, window_shards: int = 2, seed: int = 0, spread: int = 4
) -> tuple[Plan, I64]:
    """A plan over shards of these sizes; sample k belongs to bucket hash(k) % spread before merging."""
    ids = np.concatenate(
        [(np.uint64(i) << np.uint64(32)) + np.arange(n, dtype=np.uint64) for i, n in enumerate(shard_sizes)]
    )
    buckets = (np.arange(len(ids)) * 7919 % 97 % spread).astype(np.int64)
    buckets = merge_rare(buckets, SIZES, micro_batch)
    plan = Plan(
        ids,
        buckets,
        SIZES,
        micro_batch=micro_batch,
        global_batch=micro_batch * per_step,
        window_shards=window_shards,
        seed=seed,
    )
    return plan, buckets


def draws(plan: Plan, steps: range) -> list[tuple[int, int]]:
    """(epoch, row) of every draw of some steps."""
    return [
        (int(epoch), int(row))
        for step in steps
        for micro_batch in plan.step(step)
        for epoch, row in zip(micro_batch.epochs, micro_batch.rows, strict=True)
    ]


PLANS = st.tuples(
    st.lists(st.integers(1, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 8),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)


@settings(deadline=None, max_examples=60)
@given(PLANS)
def test_every_sample_is_drawn_once_an_epoch(params: tuple[list[int], int, int, int, int]) -> None:
    shard_sizes, micro_batch, per_step, window_shards, seed = params
    plan, buckets = make_plan(shard_sizes, micro_batch, per_step, window_shards=window_shards, seed=seed)
    epochs = 3
    # A rare bucket's last draws wait for the next epoch's, so one more is run.
    counts = Counter(draws(plan, range(plan.steps(epochs + 1))))
    assert set(counts.values()) == {1}
    for epoch in range(epochs):
        assert {row for e, row in counts if e == epoch} == set(range(len(buckets)))


@settings(deadline=None, max_examples=40)
@given(PLANS)
def test_micro_batches_are_of_one_bucket_and_every_step_is_full(params: tuple[list[int], int, int, int, int]) -> None:
    shard_sizes, micro_batch, per_step, window_shards, seed = params
    plan, buckets = make_plan(shard_sizes, micro_batch, per_step, window_shards=window_shards, seed=seed)
    for step in range(plan.steps(2)):
        micro_batches = plan.step(step)
        assert len(micro_batches) == per_step
        assert [m.first_slot for m in micro_batches] == [i * micro_batch for i in range(per_step)]
        areas = [int(SIZES[m.bucket].prod()) for m in micro_batches]
        assert areas == sorted(areas, reverse=True)
        for one in micro_batches:
            assert len(one.rows) == micro_batch
            assert set(buckets[one.rows].tolist()) == {one.bucket}


@settings(deadline=None, max_examples=30)
@given(PLANS, st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_step_does_not_depend_on_which_were_asked_for_before(
    params: tuple[list[int], int, int, int, int], asked: list[int]
) -> None:
    shard_sizes, micro_batch, per_step, window_shards, seed = params
    options = {"window_shards": window_shards, "seed": seed}
    used, _ = make_plan(shard_sizes, micro_batch, per_step, **options)
    for step in asked:
        used.step(step)
    fresh, _ = make_plan(shard_sizes, micro_batch, per_step, **options)
    assert draws(used, range(asked[-1], asked[-1] + 2)) == draws(fresh, range(asked[-1], asked[-1] + 2))


def test_the_order_changes_with_the_epoch_and_the_seed() -> None:
    plan, _ = make_plan([50] * 6, 4, 2)
    every = draws(plan, range(plan.steps(2)))
    first = [row for epoch, row in every if epoch == 0]
    second = [row for epoch, row in every if epoch == 1]
    assert first != sorted(first)
    assert first[: len(second)] != second
    other, _ = make_plan([50] * 6, 4, 2, seed=1)
    assert draws(other, range(10)) != draws(plan, range(10))


def test_windows_keep_reads_close_together() -> None:
    plan, _ = make_plan([40] * 12, 4, 2, window_shards=3, spread=1)
    for first in range(0, plan.steps(1), 15):  # 15 steps of 8 are one window of 3 shards of 40
        shards = {row // 40 for _, row in draws(plan, range(first, first + 15))}
        assert len(shards) == 3


def test_lengths_in_epochs() -> None:
    plan, _ = make_plan([100], 4, 2)
    assert plan.samples_per_epoch == 100
    assert plan.steps(1) == 13
    assert plan.steps(2) == 25
    assert plan.epoch(25) == 2.0
    assert plan.steps(0.5) == 7


def test_a_rare_bucket_s_draws_wait_for_their_micro_batch() -> None:
    # 5 samples of a bucket in micro-batches of 4: the fifth is trained with the next epoch's first three.
    ids = np.arange(21, dtype=np.uint64)
    buckets = np.array([0] * 16 + [1] * 5)
    plan = Plan(ids, buckets, SIZES, micro_batch=4, global_batch=4, window_shards=1, seed=3)
    rare = [m for step in range(12) for m in plan.step(step) if m.bucket == 1]
    assert rare[0].epochs.tolist() == [0, 0, 0, 0]
    assert rare[1].epochs.tolist() == [0, 1, 1, 1]
    assert set(rare[0].rows) | {rare[1].rows[0]} == set(range(16, 21))
