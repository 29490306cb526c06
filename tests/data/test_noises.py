"""The noise of draws."""

import pytest
import torch

from finetune.data.hashing import CounterRng, purpose_key
from finetune.data.noises import Noises, NoiseSource
from finetune.data.plan import Draw
from finetune.diffusion.config import NoiseConfig

SHAPE = (4, 6, 10)
DRAWS = [Draw(sample, epoch, 0) for sample in range(100) for epoch in range(20)]


def noises(draw: Draw = DRAWS[0], seed: int = 5, **settings: object) -> Noises:
    return NoiseSource(NoiseConfig(**settings), seed).draw(draw, SHAPE)  # type: ignore[arg-type]


def many(**settings: object) -> Noises:
    """The noise of many draws, stacked."""
    source = NoiseSource(NoiseConfig(**settings), 5)  # type: ignore[arg-type]
    return Noises(*map(torch.stack, zip(*(source.draw(draw, SHAPE) for draw in DRAWS), strict=True)))


def test_plain_noise_is_the_draw_s_own_stream() -> None:
    """Noise, perturbation and the posterior's noise are one block of the stream, so that none moves another."""
    drawn = CounterRng(purpose_key(5, "noise"), 0, 7, 2).normal((3, *SHAPE))
    found = noises(Draw(7, 0, 2), perturbation=0.1)
    for tensor, expected in zip((found.noise, found.perturbation, found.posterior), drawn, strict=True):
        assert torch.equal(tensor, torch.from_numpy(expected))


@pytest.mark.parametrize(
    "settings",
    [
        {"offset": 0.1, "offset_random": True},
        {"perturbation": 0.1, "perturbation_random": True},
        {"pyramid_levels": 2},
    ],
)
def test_what_is_added_moves_nothing_else(settings: dict[str, object]) -> None:
    plain, found = noises(), noises(**settings)
    touched = {"offset": "offset", "perturbation": "perturbation", "pyramid_levels": "noise"}[next(iter(settings))]
    for name in Noises._fields:
        assert torch.equal(getattr(found, name), getattr(plain, name)) == (name != touched)


def test_what_is_not_asked_for_is_nothing() -> None:
    plain = noises()
    assert torch.equal(plain.offset, torch.zeros(4, 1, 1))
    assert torch.equal(plain.perturbation, torch.zeros(1, 1, 1))


@pytest.mark.parametrize("other", [Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1)])
def test_noise_is_a_function_of_seed_and_draw(other: Draw) -> None:
    settings = {"offset": 0.1, "perturbation": 0.1, "pyramid_levels": 2}
    here = noises(Draw(0, 0, 0), **settings)
    again, elsewhere, seeded = (
        noises(Draw(0, 0, 0), **settings),
        noises(other, **settings),
        noises(Draw(0, 0, 0), seed=6, **settings),
    )
    for name in Noises._fields:
        assert torch.equal(getattr(here, name), getattr(again, name))
        assert not torch.equal(getattr(here, name), getattr(elsewhere, name))
        assert not torch.equal(getattr(here, name), getattr(seeded, name))


def test_offsets_are_standard_normal_and_independent_of_the_noise() -> None:
    found = many(offset=0.1)
    offsets = found.offset.double().flatten()
    n = len(offsets)
    assert abs(offsets.mean()) < 5 / n**0.5
    assert abs(offsets.var() - 1) < 5 * (2 / n) ** 0.5
    channels = found.offset.flatten(1).double().T
    assert (torch.corrcoef(channels) - torch.eye(4)).abs().max() < 5 / len(DRAWS) ** 0.5
    means = found.noise.mean(dim=(2, 3)).double().flatten()
    assert torch.corrcoef(torch.stack([offsets, means]))[0, 1].abs() < 5 / n**0.5


def test_streams_are_independent() -> None:
    """No number of one correlates with any of another over 2,000 draws: of all pairs none by more than 6 deviations."""
    plain, found = many(offset=0.1, perturbation=0.1), many(pyramid_levels=1, pyramid_discount=1.0)
    # One level of 3×5 in 6×10, scaled up: what is left without the plain noise, up to a factor.
    scale = (found.noise - plain.noise * (found.noise * plain.noise).mean() / plain.noise.square().mean()).flatten(1)
    streams = [plain.noise, plain.perturbation, plain.posterior, plain.offset, scale]
    for number, first in enumerate(streams):
        for second in streams[number + 1 :]:
            a, b = (standard(values.flatten(1).double()) for values in (first, second))
            assert (a.T @ b / len(DRAWS)).abs().max() < 6 / len(DRAWS) ** 0.5


def standard(values: torch.Tensor) -> torch.Tensor:
    """Of mean 0 and deviation 1 over the draws."""
    return (values - values.mean(dim=0)) / values.std(dim=0)


@pytest.mark.parametrize("name", ["offset", "perturbation"])
def test_random_strengths_are_the_seed_s_own(name: str) -> None:
    def strength(seed: int) -> torch.Tensor:
        fixed, varied = (noises(seed=seed, **{name: 0.1}, **more) for more in ({}, {f"{name}_random": True}))
        return (getattr(varied, name) / getattr(fixed, name)).mean()

    assert abs(strength(5) - strength(6)) > 0.01


def test_random_strengths_are_uniform_and_each_sample_s_own() -> None:
    settings = {"offset": 0.1, "perturbation": 0.1}
    fixed, varied = many(**settings), many(**settings, offset_random=True, perturbation_random=True)
    strengths = []
    for name in ("offset", "perturbation"):
        whole, part = getattr(fixed, name).flatten(1).double(), getattr(varied, name).flatten(1).double()
        strengths.append((whole * part).sum(dim=1) / whole.square().sum(dim=1))
        assert torch.allclose(part, strengths[-1][:, None] * whole, atol=1e-6)
        ordered = strengths[-1].sort().values
        # The largest distance from a uniform distribution's quantiles exceeds 1.95/sqrt(n) once in a thousand.
        assert (ordered - torch.linspace(0, 1, len(ordered))).abs().max() < 1.95 / len(ordered) ** 0.5
    assert torch.corrcoef(torch.stack(strengths))[0, 1].abs() < 5 / len(DRAWS) ** 0.5


def test_pyramid_noise_has_unit_mean_square_and_more_of_the_coarse() -> None:
    plain, found = many().noise, many(pyramid_levels=3, pyramid_discount=0.7).noise
    # 4,000 channels' mean squares, whose deviation is at most sqrt(2)
    mean_squares = found.square().mean(dim=(2, 3))
    assert abs(mean_squares.mean() - 1) < 5 * mean_squares.std() / mean_squares.numel() ** 0.5
    assert mean_squares.std() < 2.0**0.5
    # A channel's mean has the variance 1/60 in plain noise of 6×10; the single number at the top alone adds a share of
    # 0.7^6/(1 + 0.7^2 + 0.7^4 + 0.7^6) = 0.063 of 1 to that.
    assert abs(plain.mean(dim=(2, 3)).var() - 1 / 60) < 0.1 / 60
    assert found.mean(dim=(2, 3)).var() > 0.063
