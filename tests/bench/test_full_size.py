"""Models with random weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.model.config import ModelConfig
from finetune.model.families import load_components, load_skeleton
from tests.bench import full_size
from tests.bench.full_size import fill, save_random


def test_filled_layers_keep_the_size_of_what_goes_through_them() -> None:
    layers = nn.Sequential(nn.Linear(512, 512), nn.LayerNorm(512), nn.Conv2d(512, 512, 1))
    fill(layers, torch.Generator().manual_seed(0))
    given = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    assert layers[0](given).std().item() == pytest.approx(1.0, rel=0.05)
    assert layers[2](given[:, :, None, None]).std().item() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(layers[1](given), nn.functional.layer_norm(given, (512,)))


def test_a_saved_model_loads_and_computes(tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = load_skeleton(ModelConfig(path=str(tiny_sdxl)))
    monkeypatch.setattr(full_size, "full_size", lambda family: dict(skeleton.modules))
    save_random("sdxl", tmp_path / "model", torch.device("cpu"))
    modules = load_components(ModelConfig(path=str(tmp_path / "model"))).modules
    assert modules.keys() == skeleton.modules.keys()
    predicted = modules["unet"](
        torch.ones(1, 4, 8, 8),
        torch.tensor([5]),
        torch.ones(1, 77, skeleton.unet.config.cross_attention_dim),
        added_cond_kwargs={"text_embeds": torch.ones(1, 24), "time_ids": torch.zeros(1, 6)},
    ).sample
    assert predicted.isfinite().all()
    assert predicted.std() > 0.01
