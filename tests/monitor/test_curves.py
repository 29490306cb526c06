"""The curves of a run."""

import numpy as np
import pytest

from finetune.monitor.curves import MOST_POINTS, smoothed


def test_it_is_the_mean_of_what_lies_around() -> None:
    steps = np.arange(1, 501)
    values = np.random.default_rng(0).normal(size=500)
    shown, smooth = smoothed(steps, values)
    assert shown.tolist() == steps.tolist()
    assert smooth[250] == pytest.approx(values[245:256].mean())
    assert smooth[0] == pytest.approx(values[:6].mean())


@pytest.mark.parametrize("count", [1, 500, 25_001])
def test_a_constant_stays_one_whatever_is_missing(count: int) -> None:
    values = np.full(count, 0.25)
    values[1::3] = np.nan
    shown, smooth = smoothed(np.arange(count), values)
    assert smooth == pytest.approx(np.full(len(shown), 0.25))


def test_many_steps_are_shown_by_few_points_over_all_of_them() -> None:
    count = 1_000_003
    shown, smooth = smoothed(np.arange(count), np.linspace(0.0, 1.0, count))
    assert len(shown) == len(smooth) <= MOST_POINTS
    assert shown[0] == 0
    assert shown[-1] > 0.999 * count
    inner = slice(100, -100)
    assert smooth[inner] == pytest.approx(shown[inner] / count, abs=0.001)


def test_where_there_is_nothing_there_is_no_curve() -> None:
    _, smooth = smoothed(np.arange(3), np.full(3, np.nan))
    assert np.isnan(smooth).all()
    assert len(smoothed(np.arange(0), np.zeros(0))[1]) == 0
