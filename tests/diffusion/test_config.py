"""What a recipe may not say."""

from collections.abc import Callable
from math import inf, nan

import pytest

from finetune.diffusion.config import DiffusionConfig, NoiseConfig, SamplingConfig
from finetune.errors import UserError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionConfig(prediction="noise"), "diffusion.prediction is 'noise': use one of v, epsilon, x0"),
        (lambda: DiffusionConfig(prediction="epsilon"), "prediction=epsilon cannot go with zero_terminal_snr"),
        (lambda: DiffusionConfig(beta_schedule="sigmoid"), "use one of scaled_linear, linear, cosine"),
        (lambda: DiffusionConfig(beta_start=0.1, beta_end=0.01), "they must rise and lie between 0 and 1"),
        (lambda: DiffusionConfig(timesteps=1), "diffusion.timesteps is 1: use at least 2"),
        (lambda: DiffusionConfig(weighting="max_snr"), "use one of constant, min_snr, soft_min_snr, debiased, p2"),
        (lambda: DiffusionConfig(snr_gamma=0.0), "diffusion.snr_gamma is 0.0: use a number above 0"),
        (lambda: DiffusionConfig(p2_k=0.0), "diffusion.p2_k is 0.0: use a number above 0"),
        (lambda: DiffusionConfig(p2_gamma=-1.0), "diffusion.p2_gamma is -1.0: use 0 or more"),
        (lambda: DiffusionConfig(weight_floor=-0.1), "diffusion.weight_floor is -0.1: use 0 or more"),
        (lambda: DiffusionConfig(snr_gamma=nan), "diffusion.snr_gamma is nan: use a finite number"),
        (lambda: DiffusionConfig(p2_k=inf), "diffusion.p2_k is inf: use a finite number"),
        (lambda: DiffusionConfig(p2_gamma=nan), "diffusion.p2_gamma is nan: use a finite number"),
        (lambda: DiffusionConfig(weight_floor=inf), "diffusion.weight_floor is inf: use a finite number"),
        (lambda: DiffusionConfig(beta_end=nan), "they must rise and lie between 0 and 1"),
        (lambda: DiffusionConfig(loss="mse"), "diffusion.loss is 'mse': use one of l2, l1, huber"),
        (lambda: DiffusionConfig(huber_delta=0.0), "diffusion.huber_delta is 0.0: use a number above 0"),
        (lambda: DiffusionConfig(huber_delta=nan), "diffusion.huber_delta is nan: use a finite number"),
        (
            lambda: DiffusionConfig(huber_delta=2.0),
            "under huber_schedule=snr delta falls to it from 1: use a",
        ),
        (
            lambda: DiffusionConfig(huber_delta=1.1, huber_schedule="exponential"),
            "schedule=exponential delta falls",
        ),
        (lambda: DiffusionConfig(huber_schedule="linear"), "use one of constant, exponential, snr"),
        (lambda: NoiseConfig(pyramid_levels=-1), "diffusion.noise.pyramid_levels is -1: use 0 or more"),
        (lambda: NoiseConfig(pyramid_discount=1.5), "diffusion.noise.pyramid_discount is 1.5"),
        (lambda: NoiseConfig(offset=-0.1), "diffusion.noise.offset is -0.1: use 0 or more"),
        (lambda: NoiseConfig(adaptive_offset=-0.1), "diffusion.noise.adaptive_offset is -0.1: use 0 or more"),
        (lambda: NoiseConfig(perturbation=-0.1), "diffusion.noise.perturbation is -0.1: use 0 or more"),
        (lambda: NoiseConfig(offset=nan), "diffusion.noise.offset is nan: use a finite number"),
        (lambda: NoiseConfig(adaptive_offset=inf), "diffusion.noise.adaptive_offset is inf: use a finite number"),
        (lambda: NoiseConfig(perturbation=nan), "diffusion.noise.perturbation is nan: use a finite number"),
        (lambda: NoiseConfig(offset_random=True), "offset_random varies offset noise, but"),
        (lambda: NoiseConfig(perturbation_random=True), "perturbation_random varies input perturbation, but"),
        (lambda: SamplingConfig(distribution="cosine"), "use one of uniform, logit_normal"),
        (lambda: SamplingConfig(std=0.0), "diffusion.sampling.std is 0.0: use a number above 0"),
        (lambda: SamplingConfig(std=inf), "diffusion.sampling.std is inf: use a finite number"),
        (lambda: SamplingConfig(mean=nan), "diffusion.sampling.mean is nan: use a finite number"),
        (lambda: SamplingConfig(ranges=[[5, 4]]), r"diffusion.sampling.ranges has \[5, 4\]"),
        (lambda: SamplingConfig(ranges=[[-1, 4]]), r"diffusion.sampling.ranges has \[-1, 4\]"),
        (lambda: SamplingConfig(ranges=[[0, 4], [4, 8]]), r"diffusion.sampling.ranges has \[4, 8\]"),
        (lambda: SamplingConfig(ranges=[[0, 4, 8]]), r"diffusion.sampling.ranges has \[0, 4, 8\]"),
        (
            lambda: DiffusionConfig(sampling=SamplingConfig(ranges=[[0, 1000]])),
            r"ranges has \[0, 1000\]: the last timestep is 999",
        ),
    ],
)
def test_a_mistake_is_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_varies_may_vary() -> None:
    assert NoiseConfig(adaptive_offset=0.1, offset_random=True).has_offset
    assert not NoiseConfig(perturbation=0.1, perturbation_random=True).has_offset


def test_delta_may_be_any_where_it_does_not_fall() -> None:
    assert DiffusionConfig(huber_delta=2.0, huber_schedule="constant").huber_delta == 2.0
    assert DiffusionConfig(huber_delta=1.0).huber_schedule == "snr"
