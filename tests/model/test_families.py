"""Loading models, and what is said when that fails."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.checkpoint.export import export_file
from finetune.checkpoint.model_spec import About
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components

ABOUT = About("tiny", 1, resolution_px=512, average=False, saved=datetime(2026, 1, 1, tzinfo=UTC))


def loaded(path: Path, **settings: Any) -> Components:
    return load_components(ModelConfig(path=str(path), **settings))


def changed(model: Path, folder: Path, part: str, **settings: Any) -> Path:
    """A copy of a model with settings of a part's configuration changed."""
    shutil.copytree(model, folder / "model")
    path = folder / "model" / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder / "model"


def assert_same_weights(found: Components, expected: Components) -> None:
    assert found.modules.keys() == expected.modules.keys()
    for name, module in expected.modules.items():
        weights = found.modules[name].state_dict()
        assert weights.keys() == module.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items()), name


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
    file = export_file(components, DiffusionConfig(), tmp_path / "model.safetensors", about=ABOUT)
    again = loaded(file, config=str(twin), clip_skip=1)
    assert again.prompt_encoder.clip_skip == 1
    assert_same_weights(again, components)


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


@pytest.mark.parametrize("path", ["foo/model.ckpt", "/no/such/model.PT", "foo/pytorch_model.bin"])
def test_a_pickled_file_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(UserError, match=r"is pickled, and weights are read from safetensors alone: convert it"):
        load_components(ModelConfig(path=path))


def test_a_folder_may_be_named_like_a_pickle(tiny_sd15: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd15, tmp_path / "model.pt")
    assert loaded(tmp_path / "model.pt").latent_channels == 4


def weights_of(model: Path, part: str) -> Path:
    """The one file with a part's weights."""
    (path,) = (model / part).glob("*.safetensors")
    return path


def rewritten(model: Path, folder: Path, part: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a model with a part's tensors changed."""
    shutil.copytree(model, folder / "model")
    path = weights_of(folder / "model", part)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder / "model"


PARTS = ["unet", "vae", "text_encoder", "text_encoder_2"]


@pytest.mark.parametrize("part", PARTS)
def test_missing_tensors_are_counted_and_the_first_is_named(tiny_sdxl: Path, tmp_path: Path, part: str) -> None:
    names = sorted(load_file(weights_of(tiny_sdxl, part)))[3:5]
    model = rewritten(tiny_sdxl, tmp_path, part, lambda tensors: [tensors.pop(name) for name in names])
    first = names[0].removeprefix("text_model.")
    with pytest.raises(UserError, match=rf"its {part} does not fit .* \(tensors missing: 2, the first .*{first}\)"):
        loaded(model)


@pytest.mark.parametrize("part", PARTS)
def test_tensors_of_another_shape_are_counted_and_the_first_is_named(
    tiny_sdxl: Path, tmp_path: Path, part: str
) -> None:
    name = sorted(load_file(weights_of(tiny_sdxl, part)))[3]
    model = rewritten(tiny_sdxl, tmp_path, part, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    first = name.removeprefix("text_model.")
    found = rf"\(tensors of another shape: 1, the first .*{first} with \(3, 5\) for \(\d+,"
    with pytest.raises(UserError, match=rf"its {part} does not fit .* {found}"):
        loaded(model)


def test_what_published_files_have_too_many_is_left_alone(tiny_sd15: Path, tmp_path: Path) -> None:
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.ones(())}
    model = rewritten(tiny_sd15, tmp_path, "text_encoder", lambda tensors: tensors.update(ids))
    assert_same_weights(loaded(model), loaded(tiny_sd15))


def test_the_names_that_sd15_s_published_vae_has_are_read(tiny_sd15: Path, tmp_path: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def as_published(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, was in old.items():
                if new in name:
                    tensors[name.replace(new, was)] = tensors.pop(name)

    model = rewritten(tiny_sd15, tmp_path, "vae", as_published)
    assert sum(".query." in name for name in load_file(weights_of(model, "vae"))) == 4
    assert_same_weights(loaded(model), loaded(tiny_sd15))


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_were_cut_off_are_refused(tiny_sdxl: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_sdxl, tmp_path / "model")
    path = weights_of(tmp_path / "model", part)
    shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))  # which are not taken instead
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"has no {part} that can be loaded"):
        loaded(tmp_path / "model")


def test_a_senseless_configuration_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no text_encoder that can be loaded"):
        loaded(changed(tiny_sd15, tmp_path, "text_encoder", intermediate_size=-1))


def test_half_precision_is_taken_where_there_is_nothing_else(twin: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(twin, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert {".fp16." in path.name for path in (tmp_path / "fp16").rglob("*.safetensors")} == {True}
    components = loaded(tmp_path / "fp16")
    assert_same_weights(components, loaded(tmp_path / "plain"))
    for name, module in components.modules.items():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}, name


def test_full_precision_is_taken_where_there_is_both(tiny_sd15: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd15, tmp_path, dirs_exist_ok=True)
    DiffusionPipeline.from_pretrained(tiny_sd15, torch_dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) == 2
    assert_same_weights(loaded(tmp_path), loaded(tiny_sd15))


def test_a_missing_text_encoder_of_sdxl_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_encoder_2")
    with pytest.raises(UserError, match="has no text_encoder_2 that can be loaded"):
        loaded(tmp_path / "model")


def test_an_inpainting_model_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    model = changed(tiny_sd15, tmp_path / "config", "unet", in_channels=9)
    read = {"conv_in.weight": torch.zeros(8, 9, 3, 3)}
    model = rewritten(model, tmp_path / "weights", "unet", lambda tensors: tensors.update(read))
    with pytest.raises(UserError, match="its UNet takes 9 channels but its VAE makes 4: inpainting models"):
        loaded(model)


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


def test_all_attention_is_torch_s_fused_one(twin: Path) -> None:
    components = loaded(twin)
    processors = {type(m.processor) for part in (components.unet, components.vae) for m in attentions(part)}
    assert processors == {AttnProcessor2_0}
    assert {encoder.config._attn_implementation for encoder in components.text_encoders.values()} == {"sdpa"}


def attentions(part: nn.Module) -> list[Attention]:
    """All of a part's, of which there has to be one."""
    found = [module for module in part.modules() if isinstance(module, Attention)]
    assert found
    return found
