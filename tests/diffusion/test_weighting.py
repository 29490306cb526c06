"""The weights of timesteps against formulas derived by hand for each type of prediction."""

import re
from collections.abc import Callable
from math import cos, pi, sqrt

import pytest
import torch

from finetune.diffusion.config import BETA_SCHEDULES, PREDICTIONS, WEIGHTINGS, DiffusionConfig, SamplingConfig
from finetune.diffusion.schedule import Schedule
from finetune.diffusion.timesteps import Timesteps
from finetune.diffusion.weighting import ON_X0, neglect, timestep_weights
from finetune.errors import UserError

TIMES = [0, 500, 900, 998, 999]
# alpha_bar / (1 - alpha_bar), for the alpha_bar that test_schedule has for scaled-linear betas.
PLAIN = [
    a / (1 - a) for a in (0.99915, 0.2763326838229748, 0.01415114196967249, 4.716698899875749e-3, 4.660098513077240e-3)
]
RESCALED = [a / (1 - a) for a in (0.99915, 0.2410187827573160, 2.960393420900418e-3, 1.967888056621187e-7, 0.0)]
BY_HAND: dict[tuple[str, str], Callable[[float, float], float]] = {
    ("constant", "epsilon"): lambda snr, gamma: 1.0,
    ("constant", "v"): lambda snr, gamma: 1.0,
    ("constant", "x0"): lambda snr, gamma: 1.0,
    ("min_snr", "epsilon"): lambda snr, gamma: min(1.0, gamma / snr),
    ("min_snr", "v"): lambda snr, gamma: min(snr, gamma) / (snr + 1.0),
    ("min_snr", "x0"): lambda snr, gamma: min(snr, gamma),
    ("soft_min_snr", "epsilon"): lambda snr, gamma: gamma / (snr + gamma),
    ("soft_min_snr", "v"): lambda snr, gamma: snr * gamma / (snr + gamma) / (snr + 1.0),
    ("soft_min_snr", "x0"): lambda snr, gamma: snr * gamma / (snr + gamma),
    ("debiased", "epsilon"): lambda snr, gamma: 1.0 / sqrt(snr),
    ("debiased", "v"): lambda snr, gamma: sqrt(snr) / (snr + 1.0),
    ("debiased", "x0"): lambda snr, gamma: sqrt(snr),
    ("p2", "epsilon"): lambda snr, gamma: (0.5 + snr) ** -gamma,
    ("p2", "v"): lambda snr, gamma: snr / (snr + 1.0) * (0.5 + snr) ** -gamma,
    ("p2", "x0"): lambda snr, gamma: snr * (0.5 + snr) ** -gamma,
}


def config(weighting: str, prediction: str, rescaled: bool, gamma: float = 3.0, **more: object) -> DiffusionConfig:
    return DiffusionConfig(
        weighting=weighting,
        prediction=prediction,
        zero_terminal_snr=rescaled,
        snr_gamma=gamma,
        p2_gamma=gamma,
        p2_k=0.5,
        **more,  # type: ignore[arg-type]
    )


def weights(settings: DiffusionConfig) -> torch.Tensor:
    return timestep_weights(Schedule(settings).snr, settings)


@pytest.mark.parametrize("gamma", [1.0, 3.0, 5.0, 20.0])
@pytest.mark.parametrize(("weighting", "prediction"), BY_HAND)
def test_weights_are_those_derived_by_hand(weighting: str, prediction: str, gamma: float) -> None:
    formula = BY_HAND[weighting, prediction]
    found = weights(config(weighting, prediction, False, gamma))[TIMES].tolist()
    assert found == pytest.approx([formula(snr, gamma) for snr in PLAIN], rel=1e-8)
    if prediction != "epsilon":
        found = weights(config(weighting, prediction, True, gamma))[TIMES].tolist()
        assert found == pytest.approx([formula(snr, gamma) for snr in RESCALED], rel=1e-8)


def test_nothing_is_left_out() -> None:
    assert {weighting for weighting, _ in BY_HAND} == set(WEIGHTINGS) == {*ON_X0, "constant"}
    assert {prediction for _, prediction in BY_HAND} == set(PREDICTIONS)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize(("weighting", "prediction"), BY_HAND)
def test_weights_are_finite_everywhere(weighting: str, prediction: str, name: str) -> None:
    for rescaled in {prediction != "epsilon", False}:
        found = weights(config(weighting, prediction, rescaled, beta_schedule=name))
        assert torch.isfinite(found).all()
        assert (found >= 0.0).all()


@pytest.mark.parametrize("weighting", ON_X0)
def test_the_same_prediction_of_x0_costs_the_same_however_it_is_put(weighting: str) -> None:
    """In float64, at all timesteps: an x0 that was predicted, as epsilon, as v and as itself."""
    schedule = Schedule(config(weighting, "v", False))
    signal, noise = schedule.signal, schedule.noise
    generator = torch.Generator().manual_seed(0)
    x0, epsilon, error = torch.randn(3, 1000, generator=generator, dtype=torch.float64)
    predicted = x0 + error.sign() * (error.abs() + 0.5)
    predicted_epsilon = (signal * x0 + noise * epsilon - signal * predicted) / noise
    differences = {
        "x0": predicted - x0,
        "epsilon": predicted_epsilon - epsilon,
        "v": (signal * predicted_epsilon - noise * predicted) - (signal * epsilon - noise * x0),
    }
    costs = {name: weights(config(weighting, name, False)) * d**2 for name, d in differences.items()}
    assert torch.allclose(costs["epsilon"], costs["x0"], rtol=1e-12, atol=0.0)
    assert torch.allclose(costs["v"], costs["x0"], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("weighting", ON_X0)
def test_so_it_does_with_zero_terminal_snr(weighting: str) -> None:
    """v and x0, wherever SNR is above 0: the error of v is that of x0 divided by sqrt(1 - alpha_bar), sign aside."""
    schedule = Schedule(config(weighting, "v", True))
    on_v, on_x0 = (weights(config(weighting, name, True))[:-1] for name in ("v", "x0"))
    assert torch.allclose(on_v / schedule.noise[:-1] ** 2, on_x0, rtol=1e-12, atol=0.0)


def test_p2_of_gamma_0_is_the_plain_loss_on_epsilon() -> None:
    found = weights(DiffusionConfig(weighting="p2", p2_gamma=0.0, prediction="epsilon", zero_terminal_snr=False))
    assert torch.allclose(found, torch.ones(1000, dtype=torch.float64), rtol=1e-12)


def test_the_floor_lifts_what_lies_below_it_alone() -> None:
    plain = weights(DiffusionConfig())
    floored = weights(DiffusionConfig(weight_floor=0.02))
    assert floored[999] == 0.02
    assert torch.equal(floored[plain > 0.02], plain[plain > 0.02])
    assert (floored >= 0.02).all()


def said(settings: DiffusionConfig) -> str | None:
    return neglect(weights(settings), Timesteps(settings).probabilities, settings)


@pytest.mark.parametrize("weighting", ON_X0)
@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize(("timesteps", "last"), [(1000, 100), (1005, 101)])
def test_a_run_is_told_of_timesteps_that_hardly_count(
    weighting: str, prediction: str, timesteps: int, last: int
) -> None:
    """The last tenth, in whole timesteps from above, and a tenth of the average as a floor."""
    settings = config(weighting, prediction, True, timesteps=timesteps)
    found = weights(settings)
    share = found[-last:].mean() / found.mean()
    assert share < 0.1
    sentence = said(settings) or ""
    assert f"the last {last} timesteps {share:.1%} of" in sentence
    advised = re.search(r"diffusion\.weight_floor \(a tenth of the average is (\S+)\)", sentence)
    assert advised is not None
    assert float(advised[1]) == pytest.approx(found.mean().item() / 10, rel=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        DiffusionConfig(weight_floor=0.01),
        DiffusionConfig(weighting="constant"),
        DiffusionConfig(zero_terminal_snr=False),
        DiffusionConfig(prediction="epsilon", zero_terminal_snr=False),
        DiffusionConfig(sampling=SamplingConfig(ranges=[[0, 500], [600, 998]])),
    ],
)
def test_nothing_is_said_where_the_last_timestep_counts_or_is_not_trained(settings: DiffusionConfig) -> None:
    assert said(settings) is None


def test_a_weight_too_small_for_fp32_is_none() -> None:
    """With v and betas up to 0.5, SNR ends below 10^-80."""
    settings = config("min_snr", "v", False, beta_end=0.5)
    assert weights(settings)[-1] > 0.0
    assert "the very last, where sampling starts, none" in (said(settings) or "")


def heavy(**more: object) -> DiffusionConfig:
    """1/sqrt(SNR) on epsilon: cosine betas end at 0.999, so the last alpha_bar is a thousandth of the one before it."""
    return config("debiased", "epsilon", False, beta_schedule="cosine", **more)


def test_a_run_is_told_of_a_timestep_that_outweighs_all_others() -> None:
    """cos²((1 + 0.008)/1.008·π/2) is 0, so alpha_bar at 998 is that of the cosine and at 999 a thousandth of it."""
    cosines = [cos((t / 1000 + 0.008) / 1.008 * pi / 2) for t in range(1000)]
    alpha_bar = [(c / cosines[0]) ** 2 for c in cosines[1:]]
    alpha_bar.append(alpha_bar[-1] / 1000)
    by_hand = [sqrt((1 - a) / a) for a in alpha_bar]
    share = by_hand[-1] / sum(by_hand)
    assert share > 0.8
    assert f"debiased on epsilon gives timestep 999 alone {share:.0%} of all weight" in (said(heavy()) or "")


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(ranges=[[0, 990]]),
        SamplingConfig(ranges=[[991, 999]]),  # 9 timesteps: none weighs ten times the average
        SamplingConfig("logit_normal"),  # which draws the last one once in 10^12 times
    ],
)
def test_a_heavy_timestep_is_none_where_it_is_hardly_drawn_or_few_are(sampling: SamplingConfig) -> None:
    assert said(heavy(sampling=sampling)) is None


def test_both_are_told() -> None:
    sentence = said(DiffusionConfig(weighting="p2", p2_gamma=0.0, prediction="x0")) or ""
    assert "the last 100 timesteps" in sentence
    # SNR itself, of which alpha_bar = 0.99915 has 1175
    assert "; diffusion.weighting=p2 on x0 gives timestep 0 alone" in sentence


def test_nothing_is_said_where_no_timestep_that_is_trained_has_a_weight() -> None:
    settings = config("min_snr", "v", False, beta_schedule="linear", beta_end=0.999)
    settings.sampling.ranges = [[950, 990]]
    assert (weights(settings)[950:991] == 0.0).all()
    assert said(settings) is None


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased", "p2"])
def test_weights_that_are_not_finite_are_refused(weighting: str) -> None:
    """alpha_bar falls below what float64 has, and epsilon's error per x0's error with it: 0/0."""
    settings = config(weighting, "epsilon", False, beta_schedule="linear", beta_end=0.999)
    with pytest.raises(
        UserError, match=f"weighting={weighting} gives epsilon at timestep .* no finite weight"
    ) as caught:
        weights(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        config("debiased", "epsilon", False, beta_end=0.5),  # finite in float64 alone
        config("debiased", "x0", False, beta_start=1e-17),  # alpha_bar rounds to 1 at the start: SNR is infinite
        DiffusionConfig(weight_floor=1e39),
    ],
)
def test_so_are_weights_too_large_for_fp32(settings: DiffusionConfig) -> None:
    with pytest.raises(UserError, match="no finite weight"):
        weights(settings)
