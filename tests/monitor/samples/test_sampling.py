"""Sampling pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from finetune.checkpoint.export import export
from finetune.model.config import ModelConfig
from finetune.monitor.samples.config import Picture
from finetune.monitor.samples.sampling import Sampler
from tests.helpers import Letters
from tests.monitor.samples.tiny import opened, pixels, wanted

LONG = " ".join(["picture"] * 100)


@pytest.fixture
def sampler(tiny_model: Path) -> Sampler:
    return opened(tiny_model)


def sampled(sampler: Sampler, pictures: Sequence[Picture], at_most: int, world: int = 1) -> list[Image.Image]:
    found = {}
    for batch in sampler.batches(pictures, at_most, world):
        found.update(zip(batch, sampler.sample([pictures[place] for place in batch]), strict=True))
    return [found[place] for place in range(len(pictures))]


def test_pictures_do_not_depend_on_what_is_sampled_beside_them(twin: Path) -> None:
    sampler = opened(twin)
    pictures = [wanted(), wanted("picture number 3", 5), wanted(LONG, 2), wanted(negative=LONG), wanted(height=64)]
    alone = sampled(sampler, pictures, 1)
    assert [p.size for p in alone] == [(64, 96)] * 4 + [(64, 64)]
    for a, b in zip(alone, sampled(sampler, pictures, 4), strict=True):
        assert np.abs(pixels(a) - pixels(b)).max() <= 2  # what larger batches add up in another order
    others = zip(alone, sampled(sampler, pictures[::-1], 1, world=2)[::-1], strict=True)
    assert all(np.array_equal(a, b) for a, b in others)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.sampled_from([4.0, 7.0])), max_size=12),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_batches_hold_every_picture_once_with_its_like_and_are_fair_to_all_ranks(
    kinds: list[tuple[int, bool, float]], at_most: int, world: int
) -> None:
    sampler = Sampler(None, Letters(), None, torch.autocast("cpu", enabled=False))  # type: ignore[arg-type]
    pictures = [wanted("a", height=64 * n, guidance=scale, steps=2 + more) for n, more, scale in kinds]
    batches = sampler.batches(pictures, at_most, world)
    assert sorted(place for batch in batches for place in batch) == list(range(len(pictures)))
    assert all(len(batch) <= at_most for batch in batches)
    assert all(len({pictures[place] for place in batch}) == 1 for batch in batches)
    costs = [sum(pictures[p].height_px * pictures[p].steps for p in batch) for batch in batches]
    assert costs == sorted(costs, reverse=True)
    if len(set(kinds)) == 1 and at_most * world >= len(pictures):
        assert max(len(batch) for batch in batches) <= math.ceil(len(pictures) / world)
        assert len(batches) <= world  # so that no rank has more than its fair share


@pytest.mark.parametrize("clip_skip", [None, 2])
def test_pictures_are_those_that_diffusers_samples_from_the_export(
    twin: Path, tmp_path: Path, clip_skip: int | None
) -> None:
    sampler = opened(twin, clip_skip)
    asked = wanted("picture number 3", 3, negative="tag 7")
    (ours,) = sampler.sample([asked])
    export(sampler.pipeline, tmp_path, model=ModelConfig(path="x", clip_skip=clip_skip), steps=1)
    theirs = DiffusionPipeline.from_pretrained(tmp_path)(
        "picture number 3",
        negative_prompt="tag 7",
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        guidance_rescale=asked.guidance_rescale,
        width=asked.width_px,
        height=asked.height_px,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(theirs).std() > 1
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def seen_by_unet(sampler: Sampler, picture: Picture) -> list[tuple[Tensor, int]]:
    """Latents and timestep of every call of the UNet."""
    seen: list[tuple[Tensor, int]] = []
    hook = sampler.pipeline.unet.register_forward_pre_hook(
        lambda module, given: seen.append((given[0].clone(), int(given[1])))
    )
    sampler.sample([picture])
    hook.remove()
    return seen


@pytest.mark.parametrize("timesteps", [1000, 500])
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_sampling_starts_with_the_seed_s_noise_at_the_last_timestep(
    sampler: Sampler, tiny_model: Path, timesteps: int, prediction: str
) -> None:
    sampler = opened(tiny_model, timesteps=timesteps, prediction=prediction, zero_terminal_snr=prediction == "v")
    noise = torch.randn((1, 4, 12, 8), generator=torch.Generator().manual_seed(9))
    for guidance in (1.0, 4.0, 7.0):
        seen = seen_by_unet(sampler, wanted(seed=9, guidance=guidance, steps=5))
        assert [timestep for _, timestep in seen] == list(range(timesteps - 1, 0, -timesteps // 5))
        assert torch.equal(seen[0][0], noise.expand(1 if guidance == 1.0 else 2, -1, -1, -1))


def test_what_a_picture_depends_on_changes_it(sampler: Sampler) -> None:
    def one(**changes: Any) -> npt.NDArray[np.int64]:
        return pixels(sampler.sample([wanted(**changes)])[0])

    assert np.array_equal(one(), one())
    for changes in ({"seed": 1}, {"text": "picture"}, {"guidance": 2.0}, {"negative": "tag"}, {"steps": 3}):
        assert not np.array_equal(one(), one(**changes)), changes
    rescaled = pixels(sampler.sample([wanted()._replace(guidance_rescale=0.0)])[0])
    assert not np.array_equal(one(), rescaled)


def test_training_mode_is_left_meanwhile_and_nothing_is_drawn_from_the_global_generator(tiny_sdxl: Path) -> None:
    sampler = opened(tiny_sdxl)
    parts = [sampler.pipeline.unet, *sampler.encoder.encoders]
    for part, training in zip(parts, (True, False, True), strict=True):
        part.train(training)
    sampled: list[bool] = []
    for part in parts:
        part.register_forward_pre_hook(lambda module, given: sampled.append(module.training))
    before = torch.get_rng_state()
    with sampler.evaluating():
        sampler.sample([wanted()])
    assert torch.equal(torch.get_rng_state(), before)
    assert set(sampled) == {False}
    assert [part.training for part in parts] == [True, False, True]


def test_the_vae_decodes_in_its_own_precision(tiny_model: Path) -> None:
    seen: list[torch.dtype] = []
    sampler = opened(tiny_model, dtype=torch.bfloat16)
    sampler.pipeline.unet.conv_out.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    sampler.pipeline.vae.decoder.conv_out.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    sampler.sample([wanted()])
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
