"""The target and the weights against closed forms and against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler

from finetune.diffusion.config import WEIGHTINGS as ALLOWED
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import WEIGHTINGS, Objective, soft_min_snr
from finetune.diffusion.schedule import Schedule

GENERATOR = torch.Generator().manual_seed(0)
LATENTS, NOISE, OTHER = (torch.randn(6, 4, 5, 7, generator=GENERATOR) for _ in range(3))
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)


def test_noising_and_target_are_those_of_diffusers() -> None:
    objective = Objective(DiffusionConfig())
    noised = scheduler().add_noise(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(objective.add_noise(LATENTS, NOISE, TIMESTEPS), noised, atol=1e-3)
    velocity = scheduler().get_velocity(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(objective.target(LATENTS, NOISE, TIMESTEPS), velocity, atol=1e-3)


def test_the_latents_follow_from_input_and_target() -> None:
    # x0 = sqrt(alpha_bar) z - sqrt(1 - alpha_bar) v: appendix D of arXiv 2202.00512
    objective = Objective(DiffusionConfig())
    z = objective.add_noise(LATENTS, NOISE, TIMESTEPS)
    v = objective.target(LATENTS, NOISE, TIMESTEPS)
    signal, noise = (values[TIMESTEPS].view(-1, 1, 1, 1) for values in (objective.signal, objective.noise))
    assert torch.allclose(signal * z - noise * v, LATENTS, atol=1e-5)


def test_the_last_step_is_pure_noise_and_its_target_the_latents() -> None:
    objective = Objective(DiffusionConfig())
    last = torch.full((6,), 999)
    assert torch.equal(objective.add_noise(LATENTS, NOISE, last), NOISE)
    assert torch.equal(objective.target(LATENTS, NOISE, last), -LATENTS)


def test_input_perturbation_changes_the_input_by_its_strength_and_not_the_target() -> None:
    plain, perturbed = Objective(DiffusionConfig()), Objective(DiffusionConfig(input_perturbation=0.02))
    difference = perturbed.model_input(LATENTS, NOISE, OTHER, TIMESTEPS) - plain.add_noise(LATENTS, NOISE, TIMESTEPS)
    expected = 0.02 * plain.noise[TIMESTEPS].view(-1, 1, 1, 1) * OTHER
    assert torch.allclose(difference, expected, atol=1e-6)
    assert torch.equal(perturbed.target(LATENTS, NOISE, TIMESTEPS), plain.target(LATENTS, NOISE, TIMESTEPS))


def test_soft_min_snr_is_the_weight_on_x0_carried_over_to_v() -> None:
    snr = Schedule(DiffusionConfig()).snr
    on_x0 = snr * 3.0 / (snr + 3.0)  # a smooth min(snr, gamma)
    assert torch.allclose(soft_min_snr(snr, 3.0), on_x0 / (snr + 1.0))
    assert (on_x0 <= snr.clamp(max=3.0)).all()


def test_soft_min_snr_nearly_ignores_the_noisiest_steps() -> None:
    weight = Objective(DiffusionConfig(snr_gamma=3.0)).weight
    assert weight[900].item() == pytest.approx(0.003, abs=0.0005)
    assert weight[999] == 0.0


def test_the_floor_lifts_what_lies_below_it_alone() -> None:
    plain = Objective(DiffusionConfig()).weight
    floored = Objective(DiffusionConfig(weight_floor=0.02)).weight
    assert floored[999].item() == pytest.approx(0.02)
    assert torch.equal(floored[plain > 0.02], plain[plain > 0.02])
    assert (floored >= 0.02 - 1e-9).all()


def test_the_loss_is_the_weighted_mean_of_squared_errors() -> None:
    objective = Objective(DiffusionConfig(weighting="constant"))
    prediction = NOISE + torch.arange(6).view(-1, 1, 1, 1)
    assert objective.loss(prediction, NOISE, TIMESTEPS, torch.ones(6)).item() == pytest.approx(55 / 6, rel=1e-5)
    weighted = Objective(DiffusionConfig())
    expected = (weighted.weight[TIMESTEPS] * torch.arange(6) ** 2).mean()
    assert weighted.loss(prediction, NOISE, TIMESTEPS, torch.ones(6)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_sample_s_weight_is_a_factor_of_its_loss() -> None:
    objective = Objective(DiffusionConfig(weighting="constant"))
    prediction = NOISE + torch.arange(6).view(-1, 1, 1, 1)
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0, 2.0, 1.0])
    expected = (weights * torch.arange(6) ** 2).mean().item()
    assert objective.loss(prediction, NOISE, TIMESTEPS, weights).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_computed_in_fp32_whatever_comes_in() -> None:
    loss = Objective(DiffusionConfig()).loss(NOISE.bfloat16(), LATENTS.bfloat16(), TIMESTEPS, torch.ones(6))
    assert loss.dtype == torch.float32


def test_every_weighting_that_a_recipe_may_name_is_there() -> None:
    assert set(WEIGHTINGS) == set(ALLOWED)
