"""Loading models, and what is said when that fails."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from finetune.checkpoint.export import export_file
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components


def loaded(path: Path, **settings: Any) -> Components:
    return load_components(ModelConfig(path=str(path), **settings))


def changed(model: Path, folder: Path, part: str, **settings: Any) -> Path:
    """A copy of a model with settings of a part's configuration changed."""
    shutil.copytree(model, folder / "model")
    path = folder / "model" / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder / "model"


def test_a_diffusers_folder_loads(tiny_model: Path) -> None:
    components = loaded(tiny_model)
    assert components.vae_factor == 8
    assert components.latent_channels == 4


def test_the_family_is_told_from_the_parts(tiny_sd15: Path, tiny_sd2: Path, tiny_sdxl: Path) -> None:
    for folder in (tiny_sd15, tiny_sd2):
        components = loaded(folder)
        assert list(components.modules) == ["unet", "vae", "text_encoder"]
        assert len(components.tokenizers) == 1
        assert components.prompt_encoder.clip_skip == 1
    components = loaded(tiny_sdxl)
    assert list(components.modules) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert [tokenizer.pad_token for tokenizer in components.tokenizers] == ["<|endoftext|>", "!"]
    assert components.prompt_encoder.clip_skip == 2


def test_a_single_file_holds_the_same_model(twin: Path, tmp_path: Path) -> None:
    components = loaded(twin)
    file = export_file(components, DiffusionConfig(), tmp_path / "model.safetensors", steps=1)
    again = loaded(file, config=str(twin), clip_skip=1)
    assert again.prompt_encoder.clip_skip == 1
    assert again.modules.keys() == components.modules.keys()
    for name, module in components.modules.items():
        weights = again.modules[name].state_dict()
        assert weights.keys() == module.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items()), name


def test_weights_of_any_precision_become_fp32(twin: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(twin, torch_dtype=torch.float16).save_pretrained(tmp_path)
    for name, module in loaded(tmp_path).modules.items():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}, name


def test_a_path_that_is_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.path /no/such/model is neither a folder nor a hub id"):
        load_components(ModelConfig(path="/no/such/model"))
    with pytest.raises(UserError, match=r"model\.config /no/such/model is neither a folder nor a hub id"):
        load_components(ModelConfig(path="a.safetensors", config="/no/such/model"))


def test_a_single_file_that_is_not_there_is_refused(tmp_path: Path, tiny_sd15: Path) -> None:
    for config in (None, str(tiny_sd15)):
        with pytest.raises(UserError, match=r"none\.safetensors cannot be read"):
            loaded(tmp_path / "none.safetensors", config=config)


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="has no unet that can be loaded"):
        loaded(tmp_path / "model")


def test_a_missing_text_encoder_of_sdxl_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_encoder_2")
    with pytest.raises(UserError, match="has no text_encoder_2 that can be loaded"):
        loaded(tmp_path / "model")


def test_parts_of_different_families_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no unet|inpainting models"):
        loaded(changed(tiny_model, tmp_path, "unet", in_channels=9))


def test_a_text_encoder_of_another_family_is_refused(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd15, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    shutil.copytree(tiny_sdxl / "unet", tmp_path / "model" / "unet")
    with pytest.raises(UserError, match="its text is 16 wide but its UNet reads 40"):
        loaded(tmp_path / "model")


def test_clip_skip_beyond_the_layers_is_refused(tiny_model: Path, tiny_sdxl: Path) -> None:
    for model in (tiny_model, tiny_sdxl):
        with pytest.raises(UserError, match="clip_skip is 4 but the text encoder has 3 layers"):
            loaded(model, clip_skip=4)


def test_xformers_without_a_gpu_says_what_it_needs(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"needs a CUDA GPU and `pip install 'longhaul\[gpu\]'`"):
        loaded(tiny_model, attention="xformers")
