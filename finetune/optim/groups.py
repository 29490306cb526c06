"""Which parameters train, in which groups and at which rates: by their names alone."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from finetune.errors import UserError
from finetune.optim.config import OptimConfig
from finetune.optim.schedules import rate_factor

SINGLE_BLOCKS = {
    "conv_in": "IN00",
    "time_embedding": "TIME",
    "add_embedding": "TIME",
    "class_embedding": "TIME",
    "mid_block": "MID",
    "conv_norm_out": "FINAL",
    "conv_out": "FINAL",
}


def parameter_groups(names: Iterable[str], config: OptimConfig) -> dict[str, list[str]]:
    """The names of what trains by the label of its group, in the order of `names`.

    Labels are `unet`, `text_encoder` and `text_encoder_2`; blocks of the UNet that `block_factors` names have their
    own, as `unet.IN00`.

    Args:
        names: all parameters that could train, as `unet.conv_in.weight`.

    Raises:
        UserError: a pattern of `train` or of `block_factors` fits nothing, there is a rate for a text encoder that
            the model lacks, or nothing is left to train.
    """
    names = list(names)
    if config.text_encoder_2_lr is not None and not any(name.startswith("text_encoder_2.") for name in names):
        raise UserError(
            f"optim.text_encoder_2_lr is {config.text_encoder_2_lr}, but the model has no second text encoder: "
            "leave it null"
        )
    for pattern in config.train:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"optim.train has {pattern!r}, which fits no parameter: names begin as {names[0]!r}")
    blocks = factored_blocks(names, config.block_factors)
    groups: dict[str, list[str]] = {}
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in config.train):
            part = name.partition(".")[0]
            groups.setdefault(f"{part}.{blocks[name]}" if name in blocks else part, []).append(name)
    rates = base_rates(groups, config)
    trained = {label: members for label, members in groups.items() if rates[label] > 0.0}
    if not trained:
        raise UserError("nothing trains: all that optim.train fits has a rate of 0 (see optim.text_encoder_lr)")
    return trained


def base_rates(labels: Iterable[str], config: OptimConfig) -> dict[str, float]:
    """The learning rate of each group before its schedule."""
    parts = {
        "unet": config.lr,
        "text_encoder": config.text_encoder_lr,
        "text_encoder_2": config.second_text_encoder_lr,
    }
    rates = {}
    for label in labels:
        part, _, block = label.partition(".")
        fitting = [factor for pattern, factor in config.block_factors.items() if fnmatchcase(block, pattern)]
        rates[label] = parts[part] * fitting[-1] if block else parts[part]
    return rates


def rates(labels: Iterable[str], config: OptimConfig, step: int, total_steps: int) -> dict[str, float]:
    """The learning rate of each group at a step counted from 0, of a run of `total_steps`."""
    factor = text_factor = rate_factor(config.schedule, config.lr, step, total_steps)
    text_lr = config.text_encoder_lr or config.second_text_encoder_lr
    if text_lr and config.text_schedule is not config.schedule:
        text_factor = rate_factor(config.text_schedule, text_lr, step, total_steps)
    return {
        label: rate * (text_factor if label.startswith("text_encoder") else factor)
        for label, rate in base_rates(labels, config).items()
    }


def factored_blocks(names: Iterable[str], factors: Mapping[str, float]) -> dict[str, str]:
    """The block of every parameter of the UNet whose block a pattern of `factors` fits.

    Raises:
        UserError: a pattern fits no block, or the UNet has blocks that Stable Diffusion's do not.
    """
    if not factors:
        return {}
    blocks = unet_blocks(names)
    for pattern in factors:
        if not any(fnmatchcase(block, pattern) for block in blocks.values()):
            known = ", ".join(sorted(set(blocks.values())))
            raise UserError(f"optim.block_factors has {pattern!r}, which fits none of the UNet's blocks: {known}")
    return {name: block for name, block in blocks.items() if any(fnmatchcase(block, pattern) for pattern in factors)}


def unet_blocks(names: Iterable[str]) -> dict[str, str]:
    """The block of every parameter of the UNet among `names`, as the original code of latent diffusion counts them.

    There, `input_blocks` are the first convolution, then each level's layers and its downsampler; `output_blocks` are
    each level's layers, of which the last has the upsampler with it.

    Raises:
        UserError: the UNet has blocks that Stable Diffusion's do not.
    """
    paths = {name: name.split(".")[1:] for name in names if name.startswith("unet.")}
    down, up = (_layers(paths.values(), side) for side in ("down_blocks", "up_blocks"))
    blocks = {}
    for name, path in paths.items():
        if path[0] == "down_blocks":
            level = int(path[1])
            layer = down[level] if path[2] == "downsamplers" else int(path[3])
            blocks[name] = f"IN{1 + sum(down[:level]) + level + layer:02}"
        elif path[0] == "up_blocks":
            level = int(path[1])
            layer = up[level] - 1 if path[2] == "upsamplers" else int(path[3])
            blocks[name] = f"OUT{sum(up[:level]) + layer:02}"
        elif path[0] in SINGLE_BLOCKS:
            blocks[name] = SINGLE_BLOCKS[path[0]]
        else:
            raise UserError(f"{name} is in no block of Stable Diffusion's UNet: leave optim.block_factors out")
    return blocks


def _layers(paths: Iterable[Sequence[str]], side: str) -> list[int]:
    """How many layers each level of a side of the UNet has."""
    counts: dict[int, int] = {}
    for path in paths:
        if path[0] == side and path[2] == "resnets":
            counts[int(path[1])] = max(counts.get(int(path[1]), 0), int(path[3]) + 1)
    return [counts[level] for level in sorted(counts)]
