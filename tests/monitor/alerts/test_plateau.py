"""A plateau is told from a loss that still falls, whatever the noise."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.alerts.plateau import BINS, LEAST_IMPROVEMENT, Plateau

WINDOW = 400
ENOUGH = 2 * LEAST_IMPROVEMENT / (WINDOW / 2)
"""Relative fall a step of a loss that improves by twice the least from one half of a window to the other."""


def curve(windows: int, fall: float, noise: float, seed: int = 0) -> list[float]:
    """Losses that fall by a share each step, under log-normal noise."""
    steps = np.arange(windows * WINDOW)
    scatter = np.random.default_rng(seed).normal(0.0, noise, len(steps))
    return [float(loss) for loss in 0.12 * np.exp(-fall * steps + scatter)]


def found(losses: list[float], phase: int = 1, plateau: Plateau | None = None) -> list[dict[str, Any]]:
    plateau = plateau or Plateau(WINDOW)
    return [one for i, loss in enumerate(losses) if (one := plateau.add(i + 1, phase, loss))]


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02, 0.1, 1.0])
def test_a_loss_that_falls_is_never_a_plateau(noise: float) -> None:
    assert not found(curve(50, ENOUGH, noise))


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.005])
def test_a_flat_loss_is_one_once_a_window(noise: float) -> None:
    alarms = found(curve(10, 0.0, noise))
    assert 9 <= len(alarms) <= 10
    assert all(later["step"] - first["step"] >= WINDOW for first, later in pairwise(alarms))
    assert alarms[0]["over_steps"] == WINDOW
    assert alarms[0]["loss"] == pytest.approx(0.12, rel=0.01)


def test_a_loss_that_rises_is_one() -> None:
    assert found(curve(2, -ENOUGH, 0.0))


def test_where_noise_hides_everything_nothing_is_claimed() -> None:
    assert not found(curve(20, 0.0, 0.5))


def test_no_window_is_judged_before_it_is_full() -> None:
    assert not found([0.12] * (WINDOW - 1))
    assert found([0.12] * (WINDOW + WINDOW // BINS))


def test_what_it_tells_is_the_fall_between_the_halves() -> None:
    fall = LEAST_IMPROVEMENT / WINDOW
    [first, *_] = found(curve(3, fall, 0.0))
    assert first["improvement"] == pytest.approx(fall * WINDOW / 2, rel=1e-3)


def test_a_new_phase_begins_anew() -> None:
    plateau = Plateau(WINDOW)
    assert not found([0.12] * (WINDOW - 1), 1, plateau)
    assert not found([0.5] * (WINDOW - 1), 2, plateau)


def test_it_can_be_told_of_few_values_as_of_many() -> None:
    plateau = Plateau(WINDOW)
    told = [plateau.add(step, 1, 0.12) for step in range(0, 3 * WINDOW, WINDOW // BINS)]
    assert any(told)
    sparse = Plateau(WINDOW)
    assert not any(sparse.add(step, 1, 0.12) for step in range(0, 9 * WINDOW, WINDOW // BINS * 2))


def test_steps_that_come_again_replace_those_that_were_undone() -> None:
    plateau = Plateau(WINDOW)
    for step in range(1, WINDOW):
        plateau.add(step, 1, 0.12)
    for step in range(WINDOW // 2, 3 * WINDOW // 2):  # a rollback, from where on the loss falls fast
        assert not plateau.add(step, 1, 0.12 * math.exp(-0.01 * step))


@given(st.lists(st.none() | st.floats(), min_size=0, max_size=2 * BINS))
def test_values_that_are_no_losses_do_no_harm(losses: list[float | None]) -> None:
    plateau = Plateau(BINS)
    for step, loss in enumerate(losses):
        plateau.add(step, 1, loss)


def test_zero_steps_look_for_none() -> None:
    assert not found([0.12] * 1000, plateau=Plateau(0))
