"""A problem whose answer is known: latents x0 ~ N(MEAN, DEVIATION²), of which the best predictor of anything from the
noised latents z is linear in z. Expectations are exact sums over the nodes of Gauss-Hermite quadrature."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.diffusion.config import LOSSES, PREDICTIONS, WEIGHTINGS, DiffusionConfig, NoiseConfig
from finetune.diffusion.objective import Objective
from finetune.diffusion.schedule import Schedule

MEAN, DEVIATION = 0.7, 1.6
TIMES = (10, 300, 700, 990)
Loss = Callable[[Tensor], Tensor]


def settings(prediction: str, weighting: str = "min_snr", loss: str = "l2", perturbation: float = 0.0) -> Objective:
    return Objective(
        DiffusionConfig(
            prediction=prediction,
            weighting=weighting,
            loss=loss,
            zero_terminal_snr=prediction != "epsilon",
            noise=NoiseConfig(perturbation=perturbation),
        )
    )


def nodes(dimensions: int) -> tuple[list[Tensor], Tensor]:
    """Standard normal numbers in so many dimensions, each [n, 1, 1, 1], and their weights [n], with a mean of 1."""
    places, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = torch.tensor(list(product(places, repeat=dimensions)), dtype=torch.float32)
    shares = torch.tensor(list(product(weights / weights.sum(), repeat=dimensions)), dtype=torch.float64).prod(dim=1)
    return [column.view(-1, 1, 1, 1) for column in grid.T], (shares * len(shares)).float()


def factors(objective_prediction: str, t: int) -> tuple[float, float, float, float]:
    """sqrt(alpha_bar), sqrt(1 - alpha_bar) and how much of x0 and of the noise there is in the target."""
    config = DiffusionConfig(
        prediction=objective_prediction, zero_terminal_snr=objective_prediction != "epsilon", weighting="constant"
    )
    schedule = Schedule(config)
    signal, noise = schedule.signal[t].item(), schedule.noise[t].item()
    of_x0, of_noise = {"v": (-noise, signal), "epsilon": (0.0, 1.0), "x0": (1.0, 0.0)}[objective_prediction]
    return signal, noise, of_x0, of_noise


def best(prediction: str, t: int, perturbation: float = 0.0) -> list[float]:
    """Slope and intercept of E[target | z]: covariance over variance, and a line through the means."""
    signal, noise, of_x0, of_noise = factors(prediction, t)
    variance = signal**2 * DEVIATION**2 + noise**2 * (1 + perturbation**2)
    slope = (of_x0 * signal * DEVIATION**2 + of_noise * noise) / variance
    return [slope, of_x0 * MEAN - slope * signal * MEAN]


def minimum(loss: Loss) -> list[float]:
    """Where a quadratic function of two numbers is least: one step of Newton's."""
    start = torch.zeros(2)
    gradient = torch.func.grad(loss)(start)
    curvature = torch.func.hessian(loss)(start)
    found: list[float] = torch.linalg.solve(curvature.double(), -gradient.double()).tolist()
    return found


def expected_loss(objective: Objective, times: tuple[int, ...]) -> Loss:
    """The loss of the predictor line[0]·z + line[1], over x0, noise and perturbation, summed over some timesteps."""
    (x0, noise, perturbation), weights = nodes(3)
    latents = MEAN + DEVIATION * x0

    def loss(line: Tensor) -> Tensor:
        total = torch.zeros(())
        for t in times:
            timesteps = torch.full((len(weights),), t)
            z = objective.model_input(latents, noise, perturbation, timesteps)
            target = objective.target(latents, noise, timesteps)
            whole = torch.ones(len(weights), 1, 1, 1)
            total = total + objective.loss(line[0] * z + line[1], target, timesteps, whole, weights).weighted
        return total

    return loss


@pytest.mark.parametrize("perturbation", [0.0, 0.5])
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_optimal_predictor_of_a_timestep_is_found(
    prediction: str, weighting: str, t: int, perturbation: float
) -> None:
    objective = settings(prediction, weighting, perturbation=perturbation)
    found = minimum(expected_loss(objective, (t,)))
    assert found == pytest.approx(best(prediction, t, perturbation), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_predictor_for_all_timesteps_heeds_their_weights(prediction: str, weighting: str) -> None:
    """The normal equations with each timestep's moments of z and of the target, weighted."""
    objective = settings(prediction, weighting)
    left, right = np.zeros((2, 2)), np.zeros(2)
    for t in TIMES:
        signal, noise, of_x0, of_noise = factors(prediction, t)
        mean, variance = signal * MEAN, signal**2 * DEVIATION**2 + noise**2
        covariance = of_x0 * signal * DEVIATION**2 + of_noise * noise
        weight = objective.weight[t].item()
        left += weight * np.array([[variance + mean**2, mean], [mean, 1.0]])
        right += weight * np.array([covariance + mean * of_x0 * MEAN, of_x0 * MEAN])
    found = minimum(expected_loss(objective, TIMES))
    assert found == pytest.approx(np.linalg.solve(left, right).tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_least_at_the_optimal_predictor(loss: str, prediction: str, t: int) -> None:
    """Given z, the target is spread evenly about its mean, which is thus the best answer for any even convex loss: its
    gradient vanishes there, and nowhere near. The nodes are laid out along z and across it."""
    objective = settings(prediction, loss=loss)
    signal, noise, _, _ = factors(prediction, t)
    deviation = (signal**2 * DEVIATION**2 + noise**2) ** 0.5
    along, across = signal * DEVIATION / deviation, noise / deviation
    (u, v), weights = nodes(2)
    latents, epsilon = MEAN + DEVIATION * (along * u - across * v), across * u + along * v
    timesteps = torch.full((len(weights),), t)
    z = objective.add_noise(latents, epsilon, timesteps)
    target = objective.target(latents, epsilon, timesteps)

    def cost(line: Tensor) -> Tensor:
        whole = torch.ones(len(weights), 1, 1, 1)
        return objective.loss(line[0] * z + line[1], target, timesteps, whole, weights).weighted

    optimum = torch.tensor(best(prediction, t))
    scale = objective.weight[t].item() * target.abs().mean().item()
    assert torch.func.grad(cost)(optimum).abs().max() < 1e-3 * scale
    assert all(cost(optimum + torch.tensor(step)) > cost(optimum) for step in ((2.0, 0.0), (-2.0, 0.0), (0.0, 2.0)))
