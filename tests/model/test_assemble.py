"""What trains, and latents with noise that is given."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.checkpoint.export import build_pipeline
from finetune.diffusion.config import DiffusionConfig
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components
from finetune.model.text import PromptTokenizer

SIZE_AND_CROP = torch.tensor([[640, 480, 0, 16, 96, 64], [100, 80, 4, 0, 96, 64]])


def loaded(folder: Path, **settings: Any) -> Components:
    return load_components(ModelConfig(path=str(folder), **settings))


def predict(components: Components, trainee: Trainee, size_and_crop: Tensor = SIZE_AND_CROP) -> Tensor:
    """A prediction [2, 4, 12, 8] from noise and a prompt of two chunks."""
    chunks = PromptTokenizer(components.tokenizers, 150)([" ".join(["picture"] * 100), "tag"])
    latents = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(0))
    prediction: Tensor = trainee(latents, torch.tensor([3, 500]), *chunks, size_and_crop)
    return prediction


def predict_anew(components: Components) -> Tensor:
    return predict(components, Trainee(components))


def encode(components: Components) -> Tensor:
    """The states of a prompt."""
    return components.prompt_encoder(*PromptTokenizer(components.tokenizers, 75)(["tag 3"])).states


def gradients(components: Components) -> dict[str, Tensor]:
    """The gradients of a loss, by parameter."""
    trainee = Trainee(components)
    predict(components, trainee).square().mean().backward()
    return {name: p.grad for name, p in trainee.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_exactly_what_is_trainable_gets_a_gradient(twin: Path, clip_skip: int, checkpointing: bool) -> None:
    components = loaded(twin, clip_skip=clip_skip, gradient_checkpointing="all" if checkpointing else "none")
    trainee = Trainee(components)
    assert {name for name, p in trainee.named_parameters() if p.requires_grad} == set(trainee.trainable)
    trainee.requires_grad_(True)
    predict(components, trainee).square().mean().backward()
    assert {name for name, p in trainee.named_parameters() if p.grad is not None} == set(trainee.trainable)


def frozen(folder: Path, clip_skip: int | None) -> set[str]:
    """What never trains, by layer or norm."""
    trainee = Trainee(loaded(folder, clip_skip=clip_skip))
    names = {name for name, _ in trainee.named_parameters()} - set(trainee.trainable)
    return {".".join(name.split(".")[: 4 if ".layers." in name else 2]) for name in names}


def test_what_clip_skip_leaves_untrained(tiny_sd15: Path, tiny_sdxl: Path) -> None:
    last, before = (f"text_encoder.encoder.layers.{i}" for i in (2, 1))
    norm = "text_encoder.final_layer_norm"
    assert [frozen(tiny_sd15, n) for n in (None, 1, 2, 3)] == [set(), set(), {last}, {last, before}]
    assert [frozen(tiny_sdxl, n) for n in (None, 1, 2, 3)] == [{last, norm}, {norm}, {last, norm}, {last, before, norm}]


def test_parameters_are_named_by_their_part(twin: Path, tiny_sdxl: Path) -> None:
    trainee = Trainee(loaded(twin))
    parts = {"unet", "text_encoder"} | ({"text_encoder_2"} if twin == tiny_sdxl else set())
    assert {name.split(".")[0] for name, _ in trainee.named_parameters()} == parts
    assert all(trainee.get_parameter(name) is p for name, p in trainee.trainable.items())


def test_only_what_is_named_trains(tiny_sdxl: Path) -> None:
    components = loaded(tiny_sdxl)
    trainee = Trainee(components)
    names = {name for name in trainee.trainable if name.startswith(("unet.mid_block", "text_encoder_2.text_model.enc"))}
    trainee.train_only(names)
    assert {name for name, p in trainee.named_parameters() if p.requires_grad} == names
    first, second = components.prompt_encoder.encoders
    assert (trainee.unet.training, first.training, second.training) == (True, False, True)
    trainee.train_only(trainee.trainable)
    assert {name for name, p in trainee.named_parameters() if p.requires_grad} == set(trainee.trainable)
    assert first.training


def saved_numbers(compute: Callable[[], Tensor]) -> int:
    """How many numbers autograd keeps for the backward pass."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return sum(sizes)


def test_checkpointing_keeps_less_and_changes_no_gradient(twin: Path) -> None:
    plain, checkpointed = loaded(twin), loaded(twin, gradient_checkpointing="all")
    expected, found = gradients(plain), gradients(checkpointed)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    for compute in (predict_anew, encode):
        assert saved_numbers(partial(compute, checkpointed)) < 0.25 * saved_numbers(partial(compute, plain))


def test_sizes_and_crops_are_told_to_sdxl_alone(twin: Path, tiny_sdxl: Path) -> None:
    components = loaded(twin)
    trainee = Trainee(components)
    with torch.no_grad():
        same = torch.equal(predict(components, trainee), predict(components, trainee, SIZE_AND_CROP + 32))
    assert same == (twin != tiny_sdxl)


@torch.no_grad()
def test_sdxl_is_told_what_diffusers_pipeline_tells_it(tiny_sdxl: Path) -> None:
    components = loaded(tiny_sdxl)
    trainee, pipeline = Trainee(components).eval(), build_pipeline(components, DiffusionConfig())
    told: list[dict[str, Any]] = []
    components.unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs), with_kwargs=True)
    sizes = {"original_size": (640, 480), "crops_coords_top_left": (0, 16), "target_size": (96, 64)}
    pipeline("picture 3", height=96, width=64, num_inference_steps=1, guidance_scale=1.0, output_type="latent", **sizes)
    chunks = PromptTokenizer(components.tokenizers, 75)(["picture 3"])
    trainee(torch.zeros(1, 4, 12, 8), torch.tensor([999]), *chunks, SIZE_AND_CROP[:1])
    theirs, ours = told
    assert torch.equal(ours["added_cond_kwargs"]["time_ids"], theirs["added_cond_kwargs"]["time_ids"])
    assert torch.allclose(ours["added_cond_kwargs"]["text_embeds"], theirs["added_cond_kwargs"]["text_embeds"])
    assert torch.allclose(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
