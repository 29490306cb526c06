"""Noising, targets and the loss, against closed forms and against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from finetune.diffusion.config import PREDICTIONS, DiffusionConfig, NoiseConfig, SamplingConfig
from finetune.diffusion.objective import Objective, decile_means
from finetune.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
LATENTS, NOISE, OTHER = (torch.randn(6, 4, 5, 7, generator=GENERATOR) for _ in range(3))
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])
WHOLE = torch.ones(6, 1, 1, 1)
ONES = torch.ones(6)
STEPS = torch.arange(6).view(-1, 1, 1, 1)
"""A difference of 0 to 5 for the samples."""


def objective(**settings: object) -> Objective:
    return Objective(DiffusionConfig(**settings))  # type: ignore[arg-type]


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)


def by_sample(values: Tensor) -> Tensor:
    return values[TIMESTEPS].view(-1, 1, 1, 1)


def test_noising_and_target_are_those_of_diffusers() -> None:
    ours = objective()
    noised = scheduler().add_noise(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(ours.add_noise(LATENTS, NOISE, TIMESTEPS), noised, atol=1e-3)
    velocity = scheduler().get_velocity(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(ours.target(LATENTS, NOISE, TIMESTEPS), velocity, atol=1e-3)


def test_the_other_targets_are_the_noise_and_the_latents() -> None:
    epsilon = objective(prediction="epsilon", zero_terminal_snr=False)
    assert torch.equal(epsilon.target(LATENTS, NOISE, TIMESTEPS), NOISE)
    assert torch.equal(objective(prediction="x0").target(LATENTS, NOISE, TIMESTEPS), LATENTS)


def test_the_latents_follow_from_input_and_target() -> None:
    # x0 = sqrt(alpha_bar) z - sqrt(1 - alpha_bar) v: appendix D of arXiv 2202.00512
    ours = objective()
    z = ours.add_noise(LATENTS, NOISE, TIMESTEPS)
    v = ours.target(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(by_sample(ours.signal) * z - by_sample(ours.noise) * v, LATENTS, atol=1e-5)


def test_the_last_step_is_pure_noise_and_its_target_the_latents() -> None:
    last = torch.full((6,), 999)
    assert torch.equal(objective().add_noise(LATENTS, NOISE, last), NOISE)
    assert torch.equal(objective().target(LATENTS, NOISE, last), -LATENTS)


def test_input_perturbation_changes_the_input_by_its_strength_and_not_the_target() -> None:
    plain, perturbed = objective(), objective(noise=NoiseConfig(perturbation=0.02))
    difference = perturbed.model_input(LATENTS, NOISE, OTHER, TIMESTEPS) - plain.add_noise(LATENTS, NOISE, TIMESTEPS)
    assert torch.allclose(difference, 0.02 * by_sample(plain.noise) * OTHER, atol=1e-6)
    assert torch.equal(perturbed.target(LATENTS, NOISE, TIMESTEPS), plain.target(LATENTS, NOISE, TIMESTEPS))


def test_offset_noise_lifts_whole_channels() -> None:
    offset = OTHER[:, :, :1, :1]
    lifted = objective(noise=NoiseConfig(offset=0.1)).offset_noise(LATENTS, NOISE, offset)
    assert torch.allclose(lifted - NOISE, 0.1 * offset.expand_as(NOISE), atol=1e-6)
    nothing = torch.zeros(6, 4, 1, 1)
    assert torch.equal(objective().offset_noise(LATENTS, NOISE, nothing), NOISE)


def test_the_adaptive_strength_grows_with_the_channel_s_mean() -> None:
    latents = torch.zeros(6, 4, 5, 7)
    latents[:, 1] = -2.0
    latents[:, 2, 0] = 5.0  # a mean of 1
    lifted = objective(noise=NoiseConfig(offset=0.1, adaptive_offset=0.05)).offset_noise(
        latents, NOISE, torch.ones(6, 4, 1, 1)
    )
    strengths = (lifted - NOISE).mean(dim=(2, 3))
    assert torch.allclose(strengths, torch.tensor([0.1, 0.2, 0.15, 0.1]).expand(6, 4), atol=1e-6)


def test_the_loss_is_the_weighted_mean_of_squared_errors() -> None:
    prediction = NOISE + STEPS
    plain = objective(weighting="constant").loss(prediction, NOISE, TIMESTEPS, WHOLE, ONES).weighted
    assert plain.item() == pytest.approx(55 / 6, rel=1e-5)
    weighted = objective()
    expected = (weighted.weight[TIMESTEPS] * torch.arange(6) ** 2).mean()
    assert weighted.loss(prediction, NOISE, TIMESTEPS, WHOLE, ONES).weighted.item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_errors_are_those_of_every_sample_without_weights() -> None:
    for loss, expected in (("l2", [0, 1, 4, 9, 16, 25]), ("l1", [0, 1, 2, 3, 4, 5])):
        found = objective(loss=loss).errors(NOISE + STEPS, NOISE, TIMESTEPS, WHOLE)
        assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_errors_are_added_up_by_tenths_of_the_timesteps_without_weights() -> None:
    """Errors of i² at the timesteps 0, 1, 250, 500, 998 and 999."""
    found = objective().loss(NOISE + STEPS, NOISE, TIMESTEPS, WHOLE, 2.0 * ONES).by_decile
    sums, counts = found.tolist()
    assert sums == pytest.approx([0 + 1, 0, 4, 0, 0, 9, 0, 0, 0, 16 + 25], rel=1e-5)
    assert counts == [2, 0, 1, 0, 0, 1, 0, 0, 0, 2]
    assert not found.requires_grad
    means = decile_means([*sums, *counts])
    assert means == [pytest.approx(0.5), None, 4.0, None, None, 9.0, None, None, None, pytest.approx(20.5)]


def test_an_error_that_is_not_finite_stays_in_its_decile() -> None:
    prediction = NOISE.clone()
    prediction[2] = torch.nan
    sums, _ = objective().loss(prediction, NOISE, TIMESTEPS, WHOLE, ONES).by_decile
    assert sums.isnan().tolist() == [place == 2 for place in range(10)]


def test_huber_s_delta_is_that_of_each_sample_s_timestep() -> None:
    found = objective(loss="huber", huber_schedule="exponential", huber_delta=0.01).errors(
        NOISE + 3.0, NOISE, TIMESTEPS, WHOLE
    )
    deltas = [0.01 ** (t / 999) for t in TIMESTEPS.tolist()]
    assert found.tolist() == pytest.approx([2 * d * ((9 + d * d) ** 0.5 - d) for d in deltas], rel=1e-4)


def test_a_mask_counts_what_it_leaves_and_is_normalised() -> None:
    ours = objective(weighting="constant")
    difference = torch.zeros(3, 4, 2, 2)
    difference[:, :, 0, 0], difference[:, :, 0, 1], difference[:, :, 1, 1] = 2.0, 1.0, 100.0
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.25, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.5, 0.0]]])[:, None]
    times = torch.tensor([100, 500, 900])
    zero = torch.zeros_like(difference)
    # (4 + 1)/2, 4 whatever its weight, (4 + 0.5)/2
    assert ours.errors(difference, zero, times, mask).tolist() == pytest.approx([2.5, 4.0, 2.25], rel=1e-6)
    loss = ours.loss(difference, zero, times, mask, torch.tensor([1.0, 2.0, 1.0])).weighted
    assert loss.item() == pytest.approx((2.5 + 8.0 + 2.25) / 3, rel=1e-6)


def test_a_mask_of_ones_is_none() -> None:
    ours = objective()
    full = ours.errors(LATENTS, NOISE, TIMESTEPS, torch.ones(6, 1, 5, 7))
    assert torch.allclose(full, ours.errors(LATENTS, NOISE, TIMESTEPS, WHOLE), rtol=1e-6)


def test_an_empty_mask_costs_nothing_and_teaches_nothing() -> None:
    prediction = NOISE.clone().requires_grad_()
    mask = torch.zeros(6, 1, 5, 7)
    mask[1:] = 1.0
    loss = objective(weighting="constant").loss(prediction, LATENTS, TIMESTEPS, mask, ONES).weighted
    (gradient,) = torch.autograd.grad(loss * 65536.0, prediction)  # as scaled in fp16
    assert torch.isfinite(gradient).all()
    assert (gradient[0] == 0.0).all()
    assert (gradient[1] != 0.0).any()


def test_a_sample_s_weight_is_a_factor_of_its_loss() -> None:
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0, 2.0, 1.0])
    expected = (weights * torch.arange(6) ** 2).mean().item()
    loss = objective(weighting="constant").loss(NOISE + STEPS, NOISE, TIMESTEPS, WHOLE, weights).weighted
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_computed_in_fp32_whatever_comes_in() -> None:
    loss = objective().loss(NOISE.bfloat16(), LATENTS.bfloat16(), TIMESTEPS, WHOLE, ONES).weighted
    assert loss.dtype == torch.float32


def test_tables_are_fp32_and_soft_min_snr_nearly_ignores_the_noisiest_steps() -> None:
    ours = objective(snr_gamma=3.0)
    assert {buffer.dtype for buffer in ours.buffers()} == {torch.float32}
    assert ours.weight[900].item() == pytest.approx(0.003, abs=0.0005)
    assert ours.weight[999] == 0.0
    assert "diffusion.weight_floor" in (ours.neglect or "")


def test_timesteps_that_are_not_drawn_are_not_spoken_of() -> None:
    assert objective(sampling=SamplingConfig(ranges=[[0, 900]])).neglect is None


def test_an_objective_without_finite_weights_is_refused() -> None:
    with pytest.raises(UserError, match="no finite weight"):
        objective(prediction="epsilon", zero_terminal_snr=False, weighting="debiased", beta_end=0.5)


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased", "p2"])
def test_the_same_prediction_of_x0_costs_the_same_however_it_is_put(weighting: str) -> None:
    predicted = LATENTS + OTHER
    costs = {}
    for prediction in PREDICTIONS:
        ours = objective(prediction=prediction, weighting=weighting, zero_terminal_snr=False)
        signal, noise = by_sample(ours.signal), by_sample(ours.noise)
        implied = (ours.add_noise(LATENTS, NOISE, TIMESTEPS) - signal * predicted) / noise
        put = {"x0": predicted, "epsilon": implied, "v": signal * implied - noise * predicted}[prediction]
        target = ours.target(LATENTS, NOISE, TIMESTEPS)
        costs[prediction] = ours.loss(put, target, TIMESTEPS, WHOLE, ONES).weighted.item()
    assert costs["epsilon"] == pytest.approx(costs["x0"], rel=1e-4)
    assert costs["v"] == pytest.approx(costs["x0"], rel=1e-4)
