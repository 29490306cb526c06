"""Optimizers by name. Rates are set at every step from the schedule, so the ones given here only start it."""

from collections.abc import Callable, Iterable
from typing import Any

import bitsandbytes
import torch
from torch import nn

from finetune.optim.config import OptimConfig

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw8bit": bitsandbytes.optim.AdamW8bit,
}


def build_optimizer(config: OptimConfig, groups: Iterable[list[nn.Parameter]]) -> torch.optim.Optimizer:
    """The recipe's optimizer with one parameter group for each list of parameters, in their order."""
    param_groups: list[dict[str, Any]] = [{"params": parameters} for parameters in groups]
    return OPTIMIZERS[config.name](
        param_groups,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
