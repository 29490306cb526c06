"""One micro-batch's way to its loss."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from finetune.data.batch import Batch, LatentShape
from finetune.diffusion.config import DiffusionConfig, NoiseConfig
from finetune.diffusion.objective import Objective
from finetune.model.vae import pixel_moments
from finetune.step import TrainingStep, trial_batch
from tests.helpers import blank

LATENTS = LatentShape(channels=4, factor=2)


class Guess(nn.Module):
    """A model that always gives the same answer and keeps what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.asked: tuple[Tensor, ...] = ()

    def forward(self, *asked: Tensor) -> Tensor:
        self.asked = asked
        return self.answer.expand_as(asked[0])


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    two = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=[4, 4], norm_num_groups=2, **two).eval().requires_grad_(False)


def batch(**fields: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    trial = trial_batch(blank(3, 2), 12, 8, LATENTS)
    return trial._replace(
        pixels=torch.randint(0, 256, (3, 3, 8, 12), generator=generator, dtype=torch.uint8),
        timesteps=torch.tensor([10, 500, 999]),
        noise=torch.randn(3, 4, 4, 6, generator=generator),
        perturbation=torch.randn(3, 4, 4, 6, generator=generator),
        offset=torch.randn(3, 4, 1, 1, generator=generator),
        **fields,
    )


@pytest.fixture
def make(vae: AutoencoderKL) -> Callable[..., tuple[TrainingStep, Guess, Objective]]:
    def made(config: DiffusionConfig, precision: torch.dtype | None = None) -> tuple[TrainingStep, Guess, Objective]:
        guess, objective = Guess(), Objective(config)
        autocast = torch.autocast("cpu", dtype=precision, enabled=precision is not None)
        return TrainingStep(guess, vae, objective, autocast), guess, objective

    return made


def encoded(vae: AutoencoderKL, given: Batch) -> Tensor:
    """The posterior's mean, as the batch's posterior noise is 0."""
    mean: Tensor = vae.encode(given.pixels / 127.5 - 1.0).latent_dist.mean * vae.config.scaling_factor
    return mean


def test_the_model_is_given_what_belongs_together(make: Callable[..., tuple], vae: AutoencoderKL) -> None:
    config = DiffusionConfig(noise=NoiseConfig(offset=0.2, perturbation=0.1))
    step, guess, objective = make(config)
    given = batch()
    step.loss(step.prepare(given))
    latents = encoded(vae, given)
    noise = given.noise + 0.2 * given.offset + 0.1 * given.perturbation
    expected = objective.add_noise(latents, noise, given.timesteps)
    assert torch.allclose(guess.asked[0], expected, atol=1e-6)
    told = (given.timesteps, given.input_ids, given.chunk_rows, given.size_and_crop)
    for asked, field in zip(guess.asked[1:], told, strict=True):
        assert asked is field


def test_the_loss_weighs_and_the_errors_do_not(make: Callable[..., tuple], vae: AutoencoderKL) -> None:
    """For the answer 0 the error is the target: v of the latents and of the noise with its offset."""
    config = DiffusionConfig(noise=NoiseConfig(offset=0.2, perturbation=0.1), weight_floor=0.1)
    step, guess, objective = make(config)
    mask = torch.zeros(3, 1, 4, 6)
    mask[:, :, :2] = 1.0
    weights = torch.tensor([1.0, 0.5, 2.0])
    given = batch(mask=mask, loss_weights=weights)
    noise = given.noise + 0.2 * given.offset
    v = objective.target(encoded(vae, given), noise, given.timesteps)
    expected = v[:, :, :2].square().mean(dim=(1, 2, 3))
    assert torch.allclose(step.errors(given), expected, rtol=1e-5)
    unperturbed = objective.add_noise(encoded(vae, given), noise, given.timesteps)
    assert torch.allclose(guess.asked[0], unperturbed, atol=1e-6)
    loss = (weights * objective.weight[given.timesteps] * expected).mean()
    assert step.loss(step.prepare(given)).weighted.item() == pytest.approx(loss.item(), rel=1e-5)


def test_gradients_reach_the_model(make: Callable[..., tuple]) -> None:
    step, guess, _ = make(DiffusionConfig(weighting="constant", prediction="epsilon", zero_terminal_snr=False))
    given = batch()
    step.loss(step.prepare(given)).weighted.backward()
    assert guess.answer.grad.item() == pytest.approx(-2 * given.noise.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "encoding"),
    [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_the_vae_never_computes_in_fp16(
    make: Callable[..., tuple], vae: AutoencoderKL, precision: torch.dtype | None, encoding: torch.dtype
) -> None:
    step, _, _ = make(DiffusionConfig(), precision)
    seen: list[torch.dtype] = []
    hook = vae.encoder.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    loss = step.loss(step.prepare(batch())).weighted
    hook.remove()
    assert seen == [encoding]
    assert loss.dtype == torch.float32


def test_latents_are_drawn_from_moments_where_there_are_such(make: Callable[..., tuple], vae: AutoencoderKL) -> None:
    config = DiffusionConfig()
    pictures = batch(posterior_noise=torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(2)))
    assert pictures.pixels is not None
    moments = pictures._replace(pixels=None, moments=pixel_moments(vae, pictures.pixels))
    step, _, _ = make(config)
    for one, other in zip(step.prepare(pictures), step.prepare(moments), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(step.errors(pictures), step.errors(moments))
    coarse, _, _ = make(config, torch.bfloat16)
    for one, other in zip(coarse.prepare(moments), step.prepare(moments), strict=True):
        assert torch.equal(one, other)  # in whatever precision the model trains


def test_a_trial_batch_has_the_shapes_of_a_real_one() -> None:
    trial = trial_batch(blank(3, 7, 2), 24, 16, LatentShape(4, 8))
    assert trial.pixels.shape == (3, 3, 16, 24)
    assert (trial.input_ids.shape, trial.chunk_rows.shape) == ((21, 2, 77), (3, 7))
    assert trial.noise.shape == trial.perturbation.shape == trial.posterior_noise.shape == (3, 4, 2, 3)
    assert trial.offset.shape == (3, 4, 1, 1)
    assert trial.mask.shape == (3, 1, 2, 3)
    assert trial.size_and_crop.tolist() == [[16, 24, 0, 0, 16, 24]] * 3
    assert trial.size == (24, 16)
    assert trial.moments is None


def test_a_trial_batch_of_latents_has_no_pixels() -> None:
    trial = trial_batch(blank(3, 7, 2), 24, 16, LatentShape(4, 8), encoded=True)
    assert trial.pixels is None
    assert trial.moments is not None
    assert trial.moments.shape == (3, 8, 2, 3)
    assert trial.size == (24, 16)
