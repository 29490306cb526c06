"""Learning-rate factors."""

import pytest

from finetune.optim.config import SCHEDULES as ALLOWED
from finetune.optim.config import OptimConfig
from finetune.optim.schedules import SCHEDULES, rate_factor


def test_linear_falls_evenly_to_zero() -> None:
    config = OptimConfig(schedule="linear")
    factors = [rate_factor(config, step, 10) for step in range(11)]
    assert factors == pytest.approx([1 - i / 10 for i in range(11)])


def test_constant_stays() -> None:
    assert {rate_factor(OptimConfig(schedule="constant"), step, 10) for step in range(10)} == {1.0}


def test_warmup_rises_evenly_to_the_schedule() -> None:
    config = OptimConfig(schedule="constant", warmup_steps=4)
    assert [rate_factor(config, step, 10) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_every_schedule_that_a_recipe_may_name_is_there() -> None:
    assert set(SCHEDULES) == set(ALLOWED)
