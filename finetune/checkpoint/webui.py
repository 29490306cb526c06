"""What stable-diffusion-webui needs beside a single file: a configuration in LDM's (SD1.5, SD2) or SGM's (SDXL) form,
named like the file, and what its user has to set."""

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.model.families import Components
from finetune.model.single_file import family

OPEN_CLIP_LAYERS = 24
"""Of ViT-H-14, which webui builds for SD2 whatever the file holds. Its last layer is never used there, and diffusers'
folders leave it out."""
LAYER_NAMES = ("last", "penultimate")
"""OpenCLIP's layers that webui can read, by how many are passed over."""
BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear", "cosine": "cosine"}
"""What LDM calls the schedules of betas."""
PUBLISHED_BETAS = DiffusionConfig()
"""SD's own, which SGM's discretisation always has."""
SGM = "sgm.modules"
LDM = "ldm.modules"


def webui_config(components: Components, diffusion: DiffusionConfig) -> dict[str, Any] | None:
    """The configuration that belongs beside the file; None where webui's own for the family says the same: for SD1.5
    that predicts epsilon with SD's betas, and SDXL that predicts epsilon at clip skip 2.

    Raises:
        UserError: webui cannot sample what was trained.
    """
    if diffusion.prediction == "x0":
        raise UserError("webui samples v and epsilon but diffusion.prediction is x0: export --format single_file")
    kind = family(components.modules)
    if kind == "sdxl":
        return _sdxl(components, diffusion)
    if kind == "sd15" and diffusion.prediction == "epsilon" and _has_published_betas(diffusion):
        return None
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": _ldm(components, diffusion)}}


def webui_settings(components: Components, diffusion: DiffusionConfig) -> list[str]:
    """What the user of webui has to set, as sentences."""
    settings = []
    if diffusion.zero_terminal_snr:
        settings.append("set Noise schedule for sampling to Zero Terminal SNR (Settings, Sampler parameters)")
    if family(components.modules) == "sd15":
        settings.append(f"set Clip skip to {components.prompt_encoder.clip_skip}")
    if components.unet.config.get("upcast_attention"):
        settings.append("switch on Upcast cross attention layer to float32 (Settings, Stable Diffusion)")
    return settings


def _ldm(components: Components, diffusion: DiffusionConfig) -> dict[str, Any]:
    return {
        "parameterization": {"v": "v", "epsilon": "eps"}[diffusion.prediction],
        "beta_schedule": BETAS[diffusion.beta_schedule],
        "linear_start": diffusion.beta_start,
        "linear_end": diffusion.beta_end,
        "timesteps": diffusion.timesteps,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": components.unet.config.sample_size,
        "channels": components.latent_channels,
        "conditioning_key": "crossattn",
        "scale_factor": components.vae.config.scaling_factor,
        "use_ema": False,
        "unet_config": {
            "target": f"{LDM}.diffusionmodules.openaimodel.UNetModel",
            "params": {"image_size": components.unet.config.sample_size, **_unet(components.unet)},
        },
        "first_stage_config": _first_stage("ldm.models.autoencoder.AutoencoderKL", components.vae),
        "cond_stage_config": _cond_stage(components),
    }


def _cond_stage(components: Components) -> dict[str, Any]:
    if family(components.modules) == "sd15":
        return {"target": f"{LDM}.encoders.modules.FrozenCLIPEmbedder"}
    (encoder,) = components.prompt_encoder.encoders
    passed = OPEN_CLIP_LAYERS - encoder.config.num_hidden_layers + components.prompt_encoder.clip_skip - 1
    layer = _layer_name(passed, components.prompt_encoder.clip_skip)
    return {
        "target": f"{LDM}.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"freeze": True, "layer": layer},
    }


def _sdxl(components: Components, diffusion: DiffusionConfig) -> dict[str, Any] | None:
    if not _has_published_betas(diffusion):
        raise UserError("webui samples SDXL with SD's own betas, which were not trained: export --format single_file")
    if diffusion.prediction == "epsilon" and components.prompt_encoder.clip_skip == 2:
        return None
    scaling = {"v": "VScaling", "epsilon": "EpsScaling"}[diffusion.prediction]
    denoiser = {
        "num_idx": diffusion.timesteps,
        "weighting_config": {"target": f"{SGM}.diffusionmodules.denoiser_weighting.EpsWeighting"},  # asked for, unused
        "scaling_config": {"target": f"{SGM}.diffusionmodules.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{SGM}.diffusionmodules.discretizer.LegacyDDPMDiscretization"},
    }
    unet = components.unet.config
    network = {
        "adm_in_channels": unet.projection_class_embeddings_input_dim,
        "num_classes": "sequential",
        "spatial_transformer_attn_type": "softmax-xformers",
        **_unet(components.unet),
    }
    params = {
        "scale_factor": components.vae.config.scaling_factor,
        "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{SGM}.diffusionmodules.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{SGM}.diffusionmodules.openaimodel.UNetModel", "params": network},
        "conditioner_config": {
            "target": f"{SGM}.GeneralConditioner",
            "params": {"emb_models": _embedders(components)},
        },
        "first_stage_config": _first_stage("sgm.models.autoencoder.AutoencoderKL", components.vae),
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}


def _embedders(components: Components) -> list[dict[str, Any]]:
    first = components.prompt_encoder.encoders[0]
    clip_skip = components.prompt_encoder.clip_skip
    modules = f"{SGM}.encoders.modules"
    texts = (
        ("FrozenCLIPEmbedder", {"layer": "hidden", "layer_idx": first.config.num_hidden_layers + 1 - clip_skip}),
        (
            "FrozenOpenCLIPEmbedder2",
            {
                "arch": "ViT-bigG-14",
                "version": "laion2b_s39b_b160k",
                "freeze": True,
                "layer": _layer_name(clip_skip - 1, clip_skip),
                "always_return_pooled": True,
                "legacy": False,
            },
        ),
    )
    embedders = [
        {"is_trainable": False, "input_key": "txt", "target": f"{modules}.{name}", "params": params}
        for name, params in texts
    ]
    width = components.unet.config.addition_time_embed_dim
    for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"):
        target = f"{modules}.ConcatTimestepEmbedderND"
        embedders.append({"is_trainable": False, "input_key": key, "target": target, "params": {"outdim": width}})
    return embedders


def _unet(unet: UNet2DConditionModel) -> dict[str, Any]:
    config = unet.config
    channels, heads = list(config.block_out_channels), config.attention_head_dim
    attends = [2**level for level, kind in enumerate(config.down_block_types) if "CrossAttn" in kind]
    depth = config.transformer_layers_per_block
    # diffusers' attention_head_dim is the number of heads.
    per_head = {"num_heads": heads} if isinstance(heads, int) else {"num_head_channels": channels[0] // heads[0]}
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": channels[0],
        "attention_resolutions": attends[::-1],
        "num_res_blocks": config.layers_per_block,
        "channel_mult": [each // channels[0] for each in channels],
        **per_head,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.use_linear_projection,
        "transformer_depth": depth if isinstance(depth, int) else list(depth),
        "context_dim": config.cross_attention_dim,
        "legacy": False,
    }


def _first_stage(target: str, vae: AutoencoderKL) -> dict[str, Any]:
    config = vae.config
    channels = list(config.block_out_channels)
    shape = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": config.sample_size,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": channels[0],
        "ch_mult": [each // channels[0] for each in channels],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {
        "embed_dim": config.latent_channels,
        "ddconfig": shape,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    return {"target": target, "params": params}


def _layer_name(passed: int, clip_skip: int) -> str:
    """OpenCLIP's layer behind which so many are passed over. Raises UserError where webui cannot read it."""
    if passed not in range(len(LAYER_NAMES)):
        raise UserError(
            f"webui reads OpenCLIP's last layer or the one before it, and model.clip_skip is {clip_skip}: "
            "export --format diffusers"
        )
    return LAYER_NAMES[passed]


def _has_published_betas(diffusion: DiffusionConfig) -> bool:
    return all(
        getattr(diffusion, name) == getattr(PUBLISHED_BETAS, name)
        for name in ("beta_schedule", "beta_start", "beta_end", "timesteps")
    )
