"""Losses of a difference, and the schedules of Huber's delta."""

from math import sqrt

import pytest
import torch

from finetune.diffusion.config import HUBER_SCHEDULES, DiffusionConfig
from finetune.diffusion.config import LOSSES as ALLOWED
from finetune.diffusion.losses import LOSSES, huber, huber_deltas, l1, l2
from finetune.diffusion.schedule import Schedule

X = torch.tensor([-30.0, -1.0, -1e-4, 0.0, 0.02, 2.0, 500.0])


def deltas(schedule: str, delta: float, **more: bool) -> torch.Tensor:
    config = DiffusionConfig(loss="huber", huber_schedule=schedule, huber_delta=delta, **more)  # type: ignore[arg-type]
    return huber_deltas(Schedule(config), config)


def test_squares_and_absolute_values() -> None:
    one = torch.tensor(1.0)
    assert l2(torch.tensor([-3.0, 2.0]), one).tolist() == [9.0, 4.0]
    assert l1(torch.tensor([-3.0, 2.0]), one).tolist() == [3.0, 2.0]


@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0])
def test_huber_is_the_formula_of_the_paper_twice(delta: float) -> None:
    found = huber(X.double(), torch.tensor(delta, dtype=torch.float64)).tolist()
    assert found == pytest.approx([2 * delta**2 * (sqrt(1 + (x / delta) ** 2) - 1) for x in X.tolist()], abs=1e-9)


def test_huber_is_a_square_for_small_errors_and_straight_for_large_ones() -> None:
    assert torch.allclose(huber(X, torch.tensor(1e6)), X**2, rtol=1e-5)
    # In float32 too: an error of a ten-thousandth of delta is not lost.
    assert huber(torch.tensor(1e-5), torch.tensor(0.1)).item() == pytest.approx(1e-10, rel=1e-5)
    assert huber(torch.tensor(500.0), torch.tensor(0.1)).item() == pytest.approx(2 * 0.1 * (500.0 - 0.1), rel=1e-6)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(huber(x, torch.tensor(0.1)).sum(), x)
    assert (slope.abs() <= 0.2).all()
    assert slope[3] == 0.0


def test_deltas_follow_their_schedules() -> None:
    assert torch.equal(deltas("constant", 0.1), torch.full((1000,), 0.1, dtype=torch.float64))
    exponential = deltas("exponential", 0.01)
    assert exponential[[0, 333, 666, 999]].tolist() == pytest.approx([1.0, 0.01 ** (1 / 3), 0.01 ** (2 / 3), 0.01])
    # SNR at 500 and 900 as in test_schedule; sigma = 1/sqrt(SNR)
    by_snr = [0.9 / (1 + 1 / sqrt(snr)) ** 2 + 0.1 for snr in (0.3175556618290, 2.969183371820e-3)]
    assert deltas("snr", 0.1)[[500, 900, 999]].tolist() == pytest.approx([*by_snr, 0.1], rel=1e-9)


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
def test_scheduled_deltas_fall_to_what_was_asked_for(schedule: str) -> None:
    found = deltas(schedule, 0.1)
    assert (found.diff() < 0).all()
    assert 0.9 < found[0] <= 1.0
    assert found[-1].item() == pytest.approx(0.1, rel=1e-12)


def test_every_loss_and_schedule_that_a_recipe_may_name_is_there() -> None:
    assert set(LOSSES) == set(ALLOWED)
    assert len({tuple(deltas(schedule, 0.1).tolist()) for schedule in HUBER_SCHEDULES}) == len(HUBER_SCHEDULES)
