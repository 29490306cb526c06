"""The distribution of timesteps."""

from math import log
from statistics import NormalDist

import pytest
import torch

from finetune.diffusion.config import DiffusionConfig, SamplingConfig
from finetune.diffusion.timesteps import Timesteps
from finetune.errors import UserError

EVENLY = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
LARGEST = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)


def sampled(quantiles: torch.Tensor, timesteps: int = 1000, **sampling: object) -> torch.Tensor:
    config = DiffusionConfig(timesteps=timesteps, sampling=SamplingConfig(**sampling))  # type: ignore[arg-type]
    return Timesteps(config)(quantiles)


def counts(timesteps: torch.Tensor) -> torch.Tensor:
    return torch.bincount(timesteps, minlength=1000)


@pytest.mark.parametrize("timesteps", [2, 513, 1000])
def test_uniform_is_the_quantile_times_the_number_of_timesteps(timesteps: int) -> None:
    random = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    borders = torch.arange(timesteps, dtype=torch.float64) / timesteps
    quantiles = torch.cat([random, borders, LARGEST])
    assert torch.equal(sampled(quantiles, timesteps), (quantiles * timesteps).long())


def test_ranges_share_evenly_and_nothing_else_is_drawn() -> None:
    found = counts(sampled(EVENLY, ranges=[[0, 9], [400, 400], [990, 999]]))
    allowed = [*range(10), 400, *range(990, 1000)]
    assert found.sum() == found[allowed].sum()
    assert ((found[allowed] - 100_000 / 21).abs() < 1.0).all()
    assert sampled(LARGEST, ranges=[[0, 9], [400, 400]]).tolist() == [400]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5), (-0.5, 2.0)])
def test_logit_normal_is_its_closed_form(mean: float, std: float) -> None:
    below = counts(sampled(EVENLY, distribution="logit_normal", mean=mean, std=std)).cumsum(0)
    for t in (1, 50, 250, 500, 750, 999):
        place = t / 1000
        expected = NormalDist(mean, std).cdf(log(place / (1 - place)))
        assert below[t - 1].item() == pytest.approx(100_000 * expected, abs=1.0)


def test_logit_normal_within_a_range_keeps_its_proportions() -> None:
    whole = counts(sampled(EVENLY, distribution="logit_normal"))
    part = counts(sampled(EVENLY, distribution="logit_normal", ranges=[[300, 699]]))
    assert part[:300].sum() == part[700:].sum() == 0
    expected = whole[300:700] * (100_000 / whole[300:700].sum())
    assert ((part[300:700] - expected).abs() < 2.5).all()  # both counts are rounded


def test_ranges_without_any_probability_are_refused() -> None:
    with pytest.raises(UserError, match=r"diffusion\.sampling\.ranges lie where the logit-normal"):
        sampled(EVENLY, distribution="logit_normal", mean=5.0, std=0.05, ranges=[[0, 9]])
