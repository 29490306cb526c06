"""webui's configuration: against the published ones, and as diffusers reads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from finetune.checkpoint.webui import webui_config, webui_settings
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.model.families import Components
from finetune.model.text import PromptEncoder

V = DiffusionConfig()
EPSILON = DiffusionConfig(prediction="epsilon", zero_terminal_snr=False)
FOLDERS = {"sd15": "sd15", "sd2": "sd21_v", "sdxl": "sdxl_base"}
PUBLISHED = {"sd15": "v1-inference.yaml", "sd2": "v2-inference-v.yaml", "sdxl": "sd_xl_base.yaml"}
UNET_FACTS = {"in_channels", "out_channels", "model_channels", "num_res_blocks", "context_dim", "adm_in_channels"}
ONLY_OURS = {"image_size", "use_spatial_transformer", "use_linear_in_transformer", "legacy"}
"""What is left at its default in one of the published configurations."""


@pytest.fixture
def configs(shared_data: Path) -> Path:
    return shared_data / "configs"


def published_parts(folder: Path, clip_skip: int, **unet: Any) -> Components:
    """The parts of a published configuration on the meta device, without tokenizers."""
    with torch.device("meta"):
        encoders: list[Any] = [CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))]
        if (folder / "text_encoder_2").exists():
            second = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder_2")
            encoders.append(CLIPTextModelWithProjection(second))
        config = {**UNet2DConditionModel.load_config(folder, subfolder="unet"), **unet}
        parts = (
            UNet2DConditionModel.from_config(config),
            AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
        )
    return Components(*parts, PromptEncoder(encoders, clip_skip, "trim"), ())


def parts_of(configs: Path, family: str, clip_skip: int | None = None) -> Components:
    return published_parts(configs / FOLDERS[family], clip_skip or (2 if family == "sdxl" else 1))


def params_of(configuration: dict[str, Any] | None) -> dict[str, Any]:
    assert configuration is not None
    params: dict[str, Any] = configuration["model"]["params"]
    return params


def published(configs: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((configs / "ldm_yaml" / name).read_text())
    return found


def assert_same_unet(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["target"] == expected["target"]
    ours, theirs = found["params"], expected["params"]
    unlike = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert not unlike & UNET_FACTS
    assert unlike <= ONLY_OURS | {"use_checkpoint", "use_fp16"}  # which only save memory


@pytest.mark.parametrize("family", list(FOLDERS))
def test_it_says_what_the_published_configuration_says(configs: Path, family: str) -> None:
    ours, theirs = webui_config(parts_of(configs, family), V), published(configs, PUBLISHED[family])
    assert ours is not None
    assert ours["model"]["target"] == theirs["model"]["target"]
    found, expected = params_of(ours), theirs["model"]["params"]
    unet = "network_config" if family == "sdxl" else "unet_config"
    assert_same_unet(found[unet], expected[unet])
    assert found["scale_factor"] == expected["scale_factor"]
    vaes = [each["first_stage_config"] for each in (found, expected)]
    assert vaes[0]["target"] == vaes[1]["target"]
    shapes = [{k: v for k, v in vae["params"]["ddconfig"].items() if k != "attn_type"} for vae in vaes]
    assert shapes[0] == {**shapes[1], "resolution": shapes[0]["resolution"]}
    text = "conditioner_config" if family == "sdxl" else "cond_stage_config"
    assert found[text] == expected[text]
    for key in () if family == "sdxl" else ("linear_start", "linear_end", "timesteps", "channels", "conditioning_key"):
        assert found[key] == expected[key]


def test_sd_s_parameterization_follows_the_prediction(configs: Path) -> None:
    for family in ("sd15", "sd2"):
        assert params_of(webui_config(parts_of(configs, family), V))["parameterization"] == "v"
    assert params_of(webui_config(parts_of(configs, "sd2"), EPSILON))["parameterization"] == "eps"


def test_sdxl_s_scaling_follows_the_prediction(configs: Path) -> None:
    for diffusion, clip_skip, name in ((V, 2, "VScaling"), (EPSILON, 1, "EpsScaling")):
        params = params_of(webui_config(parts_of(configs, "sdxl", clip_skip), diffusion))
        target = params["denoiser_config"]["params"]["scaling_config"]["target"]
        assert target == f"sgm.modules.diffusionmodules.denoiser_scaling.{name}"


@pytest.mark.parametrize("family", list(FOLDERS))
def test_diffusers_reads_the_model_s_own_configuration_from_it(configs: Path, family: str) -> None:
    components = parts_of(configs, family)
    text = yaml.safe_load(yaml.safe_dump(webui_config(components, V)))
    unet = create_unet_diffusers_config_from_ldm(text, {})
    for key in (
        *("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
        *("down_block_types", "up_block_types", "use_linear_projection", "projection_class_embeddings_input_dim"),
        *("attention_head_dim", "addition_embed_type", "addition_time_embed_dim"),
    ):
        found, expected = unet[key], components.unet.config[key]
        assert (list(found) if isinstance(found, list | tuple) else found) == (
            list(expected) if isinstance(expected, list | tuple) else expected
        ), key
    vae = create_vae_diffusers_config_from_ldm(text, {})
    for key in ("block_out_channels", "latent_channels", "layers_per_block", "scaling_factor"):
        assert vae[key] == components.vae.config[key] or tuple(vae[key]) == tuple(components.vae.config[key])


def test_none_is_made_where_webui_s_own_says_the_same(configs: Path) -> None:
    assert webui_config(parts_of(configs, "sd15"), EPSILON) is None
    assert webui_config(parts_of(configs, "sdxl"), EPSILON) is None
    assert webui_config(parts_of(configs, "sd2"), EPSILON) is not None  # whose prediction webui would guess


@pytest.mark.parametrize(
    ("schedule", "name"), [("scaled_linear", "linear"), ("linear", "sqrt_linear"), ("cosine", "cosine")]
)
def test_the_betas_have_ldm_s_names(configs: Path, schedule: str, name: str) -> None:
    diffusion = DiffusionConfig(beta_schedule=schedule, beta_start=0.001, beta_end=0.02)
    params = params_of(webui_config(parts_of(configs, "sd15"), diffusion))
    assert (params["beta_schedule"], params["linear_start"], params["linear_end"]) == (name, 0.001, 0.02)
    plain = DiffusionConfig(
        prediction="epsilon", zero_terminal_snr=False, beta_schedule=schedule, beta_start=0.001, beta_end=0.02
    )
    assert webui_config(parts_of(configs, "sd15"), plain) is not None


def test_sd2_s_layer_is_counted_from_the_published_24(configs: Path) -> None:
    layer = params_of(webui_config(parts_of(configs, "sd2", 1), V))["cond_stage_config"]["params"]["layer"]
    assert layer == "penultimate"  # the last of the 23 that diffusers' folders have
    with pytest.raises(UserError, match=r"webui reads OpenCLIP's last layer or the one before it.*clip_skip is 2"):
        webui_config(parts_of(configs, "sd2", 2), V)


@pytest.mark.parametrize(("clip_skip", "first", "second"), [(1, 12, "last"), (2, 11, "penultimate")])
def test_sdxl_s_layers_follow_clip_skip(configs: Path, clip_skip: int, first: int, second: str) -> None:
    params = params_of(webui_config(parts_of(configs, "sdxl", clip_skip), V))
    texts = [each["params"] for each in params["conditioner_config"]["params"]["emb_models"][:2]]
    assert (texts[0]["layer_idx"], texts[1]["layer"]) == (first, second)


def test_what_webui_cannot_sample_is_refused(configs: Path) -> None:
    with pytest.raises(UserError, match=r"diffusion\.prediction is x0"):
        webui_config(parts_of(configs, "sd15"), DiffusionConfig(prediction="x0"))
    with pytest.raises(UserError, match="SD's own betas, which were not trained"):
        webui_config(parts_of(configs, "sdxl"), DiffusionConfig(beta_end=0.02))
    with pytest.raises(UserError, match=r"model\.clip_skip is 3"):
        webui_config(parts_of(configs, "sdxl", 3), V)


def test_the_user_is_told_what_to_set(configs: Path) -> None:
    assert [line.split(" (")[0] for line in webui_settings(parts_of(configs, "sd15", 2), V)] == [
        "set Noise schedule for sampling to Zero Terminal SNR",
        "set Clip skip to 2",
    ]
    assert webui_settings(parts_of(configs, "sdxl"), EPSILON) == []
    (told,) = webui_settings(parts_of(configs, "sd2"), EPSILON)
    assert told.startswith("switch on Upcast cross attention layer to float32")
