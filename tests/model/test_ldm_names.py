"""Names and shapes in single files: counts and names of the published files, and what diffusers' converters find."""

import pytest
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from finetune.model.single_file import stored_tensors
from tests.model.published import FAMILIES, full_size


@pytest.mark.parametrize(
    ("family", "counts", "parameters"),
    [
        # The published files have a tensor `position_ids` more, and OpenCLIP's a `logit_scale`: 1,131 and 2,515.
        ("sd15", {"model.": 686, "first_stage_model.": 248, "cond_stage_model.": 196}, 1_066_235_307),
        ("sd2", {"model.": 686, "first_stage_model.": 248, "cond_stage_model.": 23 * 12 + 4}, 1_289_952_427),
        (
            "sdxl",
            {
                "model.": 1680,
                "first_stage_model.": 248,
                "conditioner.embedders.0.": 196,
                "conditioner.embedders.1.": 389,
            },
            3_468_837_867,
        ),
    ],
)
def test_published_models_have_their_count_of_tensors(family: str, counts: dict[str, int], parameters: int) -> None:
    tensors = stored_tensors(full_size(family))
    assert {prefix: sum(name.startswith(prefix) for name in tensors) for prefix in counts} == counts
    assert len(tensors) == sum(counts.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("sd15", "model.diffusion_model.input_blocks.0.0.weight", (320, 4, 3, 3)),
        ("sd15", "model.diffusion_model.time_embed.2.weight", (1280, 1280)),
        ("sd15", "model.diffusion_model.input_blocks.1.0.in_layers.2.weight", (320, 320, 3, 3)),
        ("sd15", "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
        ("sd15", "model.diffusion_model.input_blocks.1.1.proj_in.weight", (320, 320, 1, 1)),
        ("sd15", "model.diffusion_model.input_blocks.3.0.op.weight", (320, 320, 3, 3)),
        ("sd15", "model.diffusion_model.input_blocks.4.0.skip_connection.weight", (640, 320, 1, 1)),
        ("sd15", "model.diffusion_model.middle_block.1.proj_out.weight", (1280, 1280, 1, 1)),
        ("sd15", "model.diffusion_model.middle_block.2.out_layers.3.weight", (1280, 1280, 3, 3)),
        ("sd15", "model.diffusion_model.output_blocks.2.1.conv.weight", (1280, 1280, 3, 3)),
        ("sd15", "model.diffusion_model.output_blocks.5.2.conv.weight", (1280, 1280, 3, 3)),
        ("sd15", "model.diffusion_model.output_blocks.11.0.skip_connection.weight", (320, 640, 1, 1)),
        ("sd15", "model.diffusion_model.out.2.weight", (4, 320, 3, 3)),
        ("sd15", "first_stage_model.encoder.mid.attn_1.q.weight", (512, 512, 1, 1)),
        ("sd15", "first_stage_model.encoder.mid.attn_1.norm.weight", (512,)),
        ("sd15", "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight", (256, 128, 1, 1)),
        ("sd15", "first_stage_model.encoder.down.2.downsample.conv.weight", (512, 512, 3, 3)),
        ("sd15", "first_stage_model.decoder.up.3.block.0.conv1.weight", (512, 512, 3, 3)),
        ("sd15", "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
        ("sd15", "first_stage_model.decoder.mid.block_2.conv2.weight", (512, 512, 3, 3)),
        ("sd15", "first_stage_model.decoder.norm_out.weight", (128,)),
        ("sd15", "first_stage_model.quant_conv.weight", (8, 8, 1, 1)),
        ("sd15", "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", (3072, 768)),
        ("sd15", "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight", (77, 768)),
        ("sd2", "model.diffusion_model.input_blocks.1.1.proj_in.weight", (320, 320)),
        ("sd2", "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (320, 1024)),
        ("sd2", "cond_stage_model.model.token_embedding.weight", (49408, 1024)),
        ("sd2", "cond_stage_model.model.positional_embedding", (77, 1024)),
        ("sd2", "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight", (3072, 1024)),
        ("sd2", "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_bias", (3072,)),
        ("sd2", "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight", (4096, 1024)),
        ("sd2", "cond_stage_model.model.ln_final.bias", (1024,)),
        ("sdxl", "model.diffusion_model.label_emb.0.0.weight", (1280, 2816)),
        ("sdxl", "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight", (1280, 2048)),
        ("sdxl", "model.diffusion_model.output_blocks.2.2.conv.weight", (1280, 1280, 3, 3)),
        ("sdxl", "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", (768,)),
        ("sdxl", "conditioner.embedders.1.model.text_projection", (1280, 1280)),
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias", (1280,)),
    ],
)
def test_names_of_published_files(family: str, name: str, shape: tuple[int, ...]) -> None:
    assert stored_tensors(full_size(family))[name].shape == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_converters_find_every_tensor_of_the_published_models(family: str) -> None:
    parts = full_size(family)
    tensors = stored_tensors(parts)
    converted = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), parts["unet"].config),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config),
        "text_encoder": (
            convert_open_clip_checkpoint(parts["text_encoder"], tensors)
            if family == "sd2"
            else convert_ldm_clip_checkpoint(tensors)
        ),
    }
    if family == "sdxl":
        converted["text_encoder_2"] = convert_open_clip_checkpoint(
            parts["text_encoder_2"], tensors, prefix="conditioner.embedders.1.model."
        )
    for part, found in converted.items():
        # Which of its text encoders transformers begins with text_model is a matter of its release.
        shapes = {name.removeprefix("text_model."): tensor.shape for name, tensor in found.items()}
        expected = {name.removeprefix("text_model."): w.shape for name, w in parts[part].state_dict().items()}
        assert shapes == expected
