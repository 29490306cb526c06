"""Slow ranks."""

import pytest

from finetune.health.slow import Slow, slow


def test_the_slow_rank_is_named() -> None:
    steps = [[1.0, 1.1, 0.9], [2.1, 2.0, 9.0], [1.2, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert slow(steps, 1.5) == [Slow(1, 2.1, 1.0)]
    assert slow(steps, 2.2) == []
    assert slow(steps, 0) == []


def test_of_two_ranks_either_may_be_slow() -> None:
    assert slow([[1.0], [2.0]], 1.5) == [Slow(1, 2.0, 1.0)]
    assert slow([[2.0], [1.0]], 1.5) == [Slow(0, 2.0, 1.0)]


def test_a_single_slow_step_is_none() -> None:
    assert slow([[1.0, 50.0, 1.0], [1.0, 1.0, 1.0]], 1.5) == []


@pytest.mark.parametrize("steps", [[], [[1.0]], [[], []]])
def test_there_is_nobody_to_compare_with(steps: list[list[float]]) -> None:
    assert slow(steps, 1.5) == []


def test_what_costs_nothing_is_not_told() -> None:
    assert slow([[0.001], [0.04]], 1.5) == []
    assert slow([[0.001], [0.06]], 1.5) == [Slow(1, 0.06, 0.001)]
