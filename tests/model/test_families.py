"""Loading models, and what is said when that fails."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import load_components


def test_a_diffusers_folder_loads(tiny_model: Path) -> None:
    components = load_components(ModelConfig(path=str(tiny_model)))
    assert components.vae_factor == 8
    assert components.latent_channels == 4


def test_a_path_that_is_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.path /no/such/model is neither a folder nor a hub id"):
        load_components(ModelConfig(path="/no/such/model"))


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="has no unet that can be loaded"):
        load_components(ModelConfig(path=str(tmp_path / "model")))


def test_parts_of_different_families_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(UserError, match=r"has no unet|inpainting models"):
        load_components(ModelConfig(path=str(tmp_path / "model")))


def test_clip_skip_beyond_the_layers_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="clip_skip is 4 but the text encoder has 3 layers"):
        load_components(ModelConfig(path=str(tiny_model), clip_skip=4))


def test_xformers_without_a_gpu_says_what_it_needs(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"needs a CUDA GPU and `pip install 'longhaul\[gpu\]'`"):
        load_components(ModelConfig(path=str(tiny_model), attention="xformers"))
