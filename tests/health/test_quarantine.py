"""Who is suspected: samples that turn up in bad steps again and again, and nobody else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.journal import Edition, Exclusion, Journal, Jump, Quarantine, Skip
from finetune.data.plan import Plan
from finetune.health.quarantine import _at_least, drawn, suspects
from tests.data.test_plan import Made, Recipe

BEGUN = Journal((Edition(0, {}),))
PLAN = Recipe(((0, (Made((400,) * 6),)),), micro_batch=4, per_step=2).plan()
"""300 steps of 8 samples an epoch."""
SICK = PLAN.step(7)[0].draws[0].sample


def bad_steps(plan: Plan, sample: int, epochs: int) -> list[int]:
    """The steps that draw a sample."""
    return [step for step in range(plan.steps(epochs)) if sample in drawn(plan, step)]


def journal_of(steps: list[int]) -> Journal:
    journal = BEGUN
    for step in steps:
        journal = journal.with_skip(Skip(step, "loss is nan"))
    return journal


def test_a_step_s_samples() -> None:
    assert drawn(PLAN, 7) == tuple(sorted({d.sample for m in PLAN.step(7) for d in m.draws}))
    assert len(drawn(PLAN, 7)) == 8


@pytest.mark.parametrize("after", [3, 4, 5])
def test_a_sick_sample_is_found_when_it_has_turned_up_often_enough(after: int) -> None:
    steps = bad_steps(PLAN, SICK, 5)
    assert len(steps) == 5
    found = [suspects(journal_of(steps[: i + 1]), PLAN, after) for i in range(5)]
    assert found == [()] * (after - 1) + [(SICK,)] * (6 - after)
    assert suspects(journal_of(steps), PLAN, 0) == ()


def test_a_sample_of_many_draws_an_epoch_is_found_in_few() -> None:
    """Draws are counted, and not epochs: after two epochs three of twelve in bad steps are no chance either."""
    plan = Recipe(((0, (Made((400,) * 6, times=(6, *[1] * 2399)),)),), micro_batch=4, per_step=2).plan()
    steps = bad_steps(plan, 0, 2)
    assert len(steps) >= 3
    assert suspects(journal_of(steps[:2]), plan, 3) == ()
    assert suspects(journal_of(steps[:3]), plan, 3) == (0,)


def test_what_is_replaced_already_is_not_suspected() -> None:
    steps = bad_steps(PLAN, SICK, 5)
    journal = journal_of(steps[:4])
    assert suspects(journal.with_quarantine(Quarantine(steps[3] + 1, (SICK,))), PLAN, 3) == ()
    # While it was replaced it cannot have been at fault: two of the four bad steps count.
    replaced = replace(journal, exclusions=(Exclusion(steps[0], (SICK,)), Exclusion(steps[2], ())))
    assert suspects(replaced, PLAN, 3) == ()
    assert suspects(replaced, PLAN, 2) == (SICK,)


def test_a_streak_that_was_rolled_back_accuses_nobody() -> None:
    steps = bad_steps(PLAN, SICK, 4)
    streak = range(steps[2] - 3, steps[2] + 2)
    journal = journal_of([*steps[:2], *streak])
    assert suspects(journal, PLAN, 3) == (SICK,)
    jumped = journal.with_jump(Jump(steps[1] + 5, PLAN.after_window(streak[-1]), streak[0]))
    assert suspects(jumped, PLAN, 3) == ()
    # What was bad before the streak counts, though it was rolled back too.
    assert suspects(jumped, PLAN, 2) == (SICK,)
    assert suspects(jumped.with_skip(Skip(steps[3], "loss is nan")), PLAN, 3) == (SICK,)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_a_sick_run_is_not_blamed_on_its_samples(seed: int, share: float) -> None:
    """Of steps that are bad at random, however many, on average less than one sample in 400 is suspected."""
    plan = Recipe(((0, (Made((200, 200)),)),), micro_batch=4, per_step=2).plan()
    noise = np.random.default_rng(seed)
    steps = np.flatnonzero(noise.random(plan.steps(6)) < share).tolist()
    assert len(suspects(journal_of(steps), plan, 3)) <= 4


def test_the_sick_sample_is_found_among_steps_that_are_bad_at_random() -> None:
    noise = np.random.default_rng(0)
    steps = set(np.flatnonzero(noise.random(PLAN.steps(8)) < 0.02).tolist()) | set(bad_steps(PLAN, SICK, 8))
    assert suspects(journal_of(sorted(steps)), PLAN, 3) == (SICK,)


def test_the_binomial_s_tail() -> None:
    assert _at_least(0, 5, 0.3) == pytest.approx(1.0)
    assert _at_least(3, 3, 0.25) == pytest.approx(0.25**3)
    assert _at_least(1, 4, 0.25) == pytest.approx(1 - 0.75**4)
    assert _at_least(6, 5, 0.3) == 0.0
