"""Optimizers by name. Rates are set at every step from the schedule, so the ones given here only start it."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bitsandbytes
import pytorch_optimizer
import torch
from torch import nn
from torch.optim import Optimizer

from finetune.errors import UserError
from finetune.optim.config import OptimConfig


def adopt_bound(calls: float) -> float:
    """The bound t^(1/4) of ADOPT's normalised gradient at its t-th update (Taniguchi et al., arXiv 2411.02853v3,
    algorithm 2). The library counts the first call, which only starts the second moment: its count is t + 1."""
    return float((calls - 1) ** 0.25)


OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "adamw8bit": (bitsandbytes.optim.AdamW8bit, {}),
    "paged_adamw": (bitsandbytes.optim.PagedAdamW, {}),
    "paged_adamw8bit": (bitsandbytes.optim.PagedAdamW8bit, {}),
    "adopt": (pytorch_optimizer.ADOPT, {"weight_decouple": True, "clip_lambda": adopt_bound}),
    "lion": (pytorch_optimizer.Lion, {}),
    "lion8bit": (bitsandbytes.optim.Lion8bit, {}),
    "prodigy": (pytorch_optimizer.Prodigy, {}),
    "dadapt_adam": (pytorch_optimizer.DAdaptAdam, {"weight_decouple": True}),
    "adafactor": (torch.optim.Adafactor, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd8bit": (bitsandbytes.optim.SGD8bit, {"momentum": 0.9}),
    "schedule_free_adamw": (pytorch_optimizer.ScheduleFreeAdamW, {}),
}
"""Each optimizer with the arguments that make it the published one, which `optim.options` may override."""
DEAD_ARGUMENTS = ("nesterov", "dampening", "amsgrad", "args")
"""What bitsandbytes' signatures have and its kernels do nothing with."""


def build_optimizer(config: OptimConfig, groups: Mapping[str, Sequence[nn.Parameter]]) -> Optimizer:
    """The recipe's optimizer, ready to train, with one parameter group for each entry, in order; `"name"` tells which.

    Raises:
        UserError: it cannot be found, or does not take an argument that the recipe gives.
    """
    build, defaults = OPTIMIZERS[config.name] if config.name in OPTIMIZERS else (own_optimizer(config.name), {})
    _check_taken(build, config)
    param_groups: list[dict[str, Any]] = [{"params": list(group), "name": name} for name, group in groups.items()]
    try:
        optimizer = build(param_groups, lr=config.lr, **{**defaults, **config.arguments, **config.options})
    except (TypeError, ValueError) as error:
        raise UserError(f"optim.name is {config.name}, which refuses its arguments ({error}): mend them") from error
    if hasattr(optimizer, "train"):  # schedule-free ones hold either the weights that train or their average
        optimizer.train()
    return optimizer


def check_optimizer(config: OptimConfig) -> None:
    """Try the optimizer on a lone parameter, before a model is loaded. Raises UserError as `build_optimizer` does."""
    build_optimizer(config, {"unet": [nn.Parameter(torch.zeros(1))]})


def own_optimizer(name: str) -> Callable[..., Optimizer]:
    """The user's own class, given as module:Class.

    Raises:
        UserError: there is no such class, or it is no optimizer.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optim.name is {name}: {error}; give a module that Python finds, and a class in it") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"optim.name is {name}, which is no torch.optim.Optimizer: give a class that is one")
    return found


def _check_taken(build: Callable[..., Optimizer], config: OptimConfig) -> None:
    parameters = inspect.signature(build).parameters
    taken = [name for name in parameters if name not in ("self", "params", "kwargs")]
    if build.__module__.startswith("bitsandbytes."):
        taken = [name for name in taken if name not in DEAD_ARGUMENTS]
    swallows = config.name not in OPTIMIZERS and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in (*config.arguments, *config.options):
        if name not in taken and not swallows:
            where = "optim" if name in config.arguments else "optim.options"
            raise UserError(f"{where}.{name} is given but {config.name} takes {', '.join(taken)} only: leave it out")
