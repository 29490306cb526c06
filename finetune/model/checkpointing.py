"""Which blocks of a model compute their activations again in the backward pass (Chen et al., arXiv 1604.06174)."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

FLAG, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"
"""By what blocks are told whether to, and how; diffusers and transformers agree in this."""
CHECKPOINT = partial(checkpoint, use_reentrant=False)


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks of which each can be checkpointed by itself, by their names in the module: the UNet's levels without
    their transformers, these transformers, and the layers of text encoders."""
    return {name: each for name, each in module.named_modules() if hasattr(each, FLAG)}


def checkpoint_blocks(module: nn.Module, chosen: Collection[str], how: Callable[..., Any] = CHECKPOINT) -> None:
    """Have these of a module's `blocks` compute their activations again, and no others.

    Args:
        how: called with a function and its arguments in the place of the function.
    """
    for name, block in blocks(module).items():
        setattr(block, FLAG, name in chosen)
        setattr(block, FUNCTION, how)
