"""Names of tensors in single files, as LDM (SD1.5, SD2) and SGM (SDXL) give them, for those of diffusers' modules.

A layout says for every tensor of the file which tensors of the module it holds: one, or q, k and v stacked along the
first axis, as OpenCLIP keeps them.
"""

import re
from collections.abc import Collection, Iterable

from finetune.errors import UserError

Layout = dict[str, tuple[str, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "down_blocks.": "down.",
    ".resnets.": ".block.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
    ".conv_shortcut.": ".nin_shortcut.",
    ".conv_norm_out.": ".norm_out.",
    ".group_norm.": ".norm.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".to_out.0.": ".proj_out.",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.q_proj.": ".attn.in_proj_",
    "final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
_TEXT_MODEL = "text_model."
"""Begins the names of one of transformers' two text encoders and, since its release 5, not those of the other."""


def unet_layout(names: Collection[str]) -> Layout:
    """The layout of a UNet2DConditionModel's tensors.

    Raises:
        UserError: it has a tensor that the UNets of SD1.5, SD2 and SDXL have not.
    """
    layers = sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", name)) for name in names)
    return {UNET_PREFIX + _unet_name(name, layers, names): (name,) for name in names}


def vae_layout(names: Collection[str]) -> Layout:
    """The layout of an AutoencoderKL's tensors. LDM counts the decoder's levels from the finest, diffusers from the
    coarsest."""
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.up_blocks.")})

    def renamed(name: str) -> str:
        mirrored = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda i: f"decoder.up.{levels - 1 - int(i[1])}", name)
        return VAE_PREFIX + _replaced(mirrored, _VAE)

    return {renamed(name): (name,) for name in names}


def clip_layout(names: Iterable[str], prefix: str) -> Layout:
    """The layout of OpenAI's text encoder behind a prefix: transformers' own names."""
    return {f"{prefix}transformer.{_TEXT_MODEL}{name.removeprefix(_TEXT_MODEL)}": (name,) for name in names}


def open_clip_layout(names: Iterable[str], prefix: str) -> Layout:
    """The layout of OpenCLIP's text encoder behind a prefix; q, k and v are one tensor."""
    layout: Layout = {}
    for name in names:
        if ".k_proj." in name or ".v_proj." in name:
            continue
        held = tuple(name.replace(".q_proj.", f".{x}_proj.") for x in "qkv") if ".q_proj." in name else (name,)
        layout[f"{prefix}model.{_replaced(name.removeprefix(_TEXT_MODEL), _OPEN_CLIP)}"] = held
    return layout


def _unet_name(name: str, layers: int, names: Collection[str]) -> str:
    """LDM numbers its blocks through: the first convolution, then, level for level, the layers and what resizes.

    Going down, resizing is a block of its own; going up, it is the end of the level's last block.
    """
    if not (found := _BLOCK.fullmatch(name)):
        return _moved(name, _OUTSIDE_BLOCKS)
    side, level, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    first = level * (layers + 1)
    inner = _moved(rest, _RESNET) if kind == "resnets" else rest
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        attends = f"up_blocks.{level}.attentions.0.norm.weight" in names
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
    if side == "mid":
        return f"middle_block.{2 * layer + (kind == 'attentions')}.{inner}"
    place = f"input_blocks.{first + layer + 1}" if side == "down" else f"output_blocks.{first + layer}"
    return f"{place}.{int(kind == 'attentions')}.{inner}"


def _moved(name: str, table: dict[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    if module not in table:
        raise UserError(
            f"the UNet has a tensor {name}, which single files have no place for: use a model of SD1.5, SD2.1 or SDXL"
        )
    return f"{table[module]}.{leaf}"


def _replaced(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name
