"""The forward process against numbers computed apart, closed forms and diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler

from finetune.diffusion.config import BETA_SCHEDULES, DiffusionConfig
from finetune.diffusion.schedule import Schedule, rescale_zero_terminal_snr, scaled_linear_betas

TIMES = [0, 500, 900, 998, 999]
# alpha_bar at TIMES from the definition, in decimal arithmetic of 50 digits.
BEFORE = {
    "scaled_linear": [0.99915, 0.2763326838229748, 0.01415114196967249, 4.716698899875749e-3, 4.660098513077240e-3],
    "linear": [0.99915, 0.1607715998701893, 4.939053520258853e-3, 1.598140617967046e-3, 1.578962930551442e-3],
    "cosine": [0.9999587157751782, 0.4922851724488026, 0.02361610879439384, 2.428766907034468e-6, 2.428766907034468e-9],
}
AFTER = {
    "scaled_linear": [0.99915, 0.2410187827573160, 2.960393420900418e-3, 1.967888056621187e-7, 0.0],
    "linear": [0.99915, 0.1415125530385494, 1.011662679305890e-3, 6.277246784448066e-8, 0.0],
}
DIFFUSERS_NAMES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_alpha_bar_is_what_the_betas_come_to(name: str) -> None:
    schedule = Schedule(DiffusionConfig(beta_schedule=name, zero_terminal_snr=False))
    # The cosine's last betas are differences of nearly equal numbers.
    assert (schedule.signal[TIMES] ** 2).tolist() == pytest.approx(BEFORE[name], rel=1e-9)


@pytest.mark.parametrize("name", AFTER)
def test_the_rescale_is_that_of_the_paper(name: str) -> None:
    schedule = Schedule(DiffusionConfig(beta_schedule=name))
    assert (schedule.signal[TIMES] ** 2).tolist() == pytest.approx(AFTER[name], rel=1e-9)
    snr = [share / (1 - share) for share in AFTER[name]]
    assert schedule.snr[TIMES].tolist() == pytest.approx(snr, rel=1e-9)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_it_is_what_diffusers_samples_with(name: str, zero_terminal_snr: bool) -> None:
    theirs = DDIMScheduler(
        beta_schedule=DIFFUSERS_NAMES[name],
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    alphas_cumprod = (
        Schedule(DiffusionConfig(beta_schedule=name, zero_terminal_snr=zero_terminal_snr)).signal.square().float()
    )
    assert (alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-5  # theirs are computed in float32
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    assert (betas - theirs.betas[1:]).abs().max() < 5e-4


def test_the_rescale_ends_at_zero_and_keeps_the_start() -> None:
    before = torch.cumprod(1 - scaled_linear_betas(0.00085, 0.012, 1000), dim=0)
    after = rescale_zero_terminal_snr(before)
    assert after[-1] == 0.0
    assert after[0] == pytest.approx(before[0].item(), rel=1e-12)
    assert (after.diff() < 0).all()
    # The rescale is affine in sqrt(alpha_bar).
    slope = after.sqrt().diff() / before.sqrt().diff()
    assert slope.std() < 1e-9


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_snr_is_that_of_the_rescaled_schedule_and_finite(name: str) -> None:
    schedule = Schedule(DiffusionConfig(beta_schedule=name))
    assert schedule.snr[-1] == 0.0
    assert torch.isfinite(schedule.snr).all()
    assert torch.allclose(schedule.snr, schedule.signal**2 / schedule.noise**2)
    assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones(1000, dtype=torch.float64))
