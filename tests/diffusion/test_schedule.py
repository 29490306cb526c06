"""The forward process against closed forms and against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler

from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.schedule import Schedule, rescale_zero_terminal_snr, scaled_linear_betas


@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_it_is_what_diffusers_samples_with(zero_terminal_snr: bool) -> None:
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=zero_terminal_snr
    ).alphas_cumprod.double()
    ours = Schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr)).signal ** 2
    assert (ours - theirs).abs().max() < 1e-5


def test_the_rescale_ends_at_zero_and_keeps_the_start() -> None:
    before = torch.cumprod(1 - scaled_linear_betas(0.00085, 0.012, 1000), dim=0)
    after = rescale_zero_terminal_snr(before)
    assert after[-1] == 0.0
    assert after[0] == pytest.approx(before[0].item(), rel=1e-12)
    assert (after.diff() < 0).all()
    # The rescale is affine in sqrt(alpha_bar).
    slope = after.sqrt().diff() / before.sqrt().diff()
    assert slope.std() < 1e-9


def test_snr_is_that_of_the_rescaled_schedule_and_finite() -> None:
    schedule = Schedule(DiffusionConfig(zero_terminal_snr=True))
    assert schedule.snr[-1] == 0.0
    assert torch.isfinite(schedule.snr).all()
    assert torch.allclose(schedule.snr, schedule.signal**2 / schedule.noise**2)
    assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones(1000, dtype=torch.float64))
