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
FUSED = ("adamw", "sgd")
"""Optimizers of torch that on a GPU can step all parameters in a few kernels."""
DEAD_ARGUMENTS = ("nesterov", "dampening", "amsgrad", "args")
"""What bitsandbytes' signatures have and its kernels do nothing with."""
FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
"""What code that is not ours raises over arguments that it was not made for."""
TRIAL_SIDE = 64
"""Rows and columns of the matrix on which an optimizer is tried: the least that bitsandbytes keeps in 8 bits."""
TRIAL_STEPS = 2
"""ADOPT's first one only starts its second moment."""


def build_optimizer(config: OptimConfig, groups: Mapping[str, Sequence[nn.Parameter]]) -> Optimizer:
    """The recipe's optimizer, ready to train, with one parameter group for each entry, in order; `"name"` tells which.

    Raises:
        UserError: it cannot be found, or does not take an argument that the recipe gives.
    """
    build, defaults = OPTIMIZERS[config.name] if config.name in OPTIMIZERS else (own_optimizer(config.name), {})
    _check_taken(build, config)
    if config.name in FUSED and torch.cuda.is_available():
        defaults = {**defaults, "fused": True}
    param_groups: list[dict[str, Any]] = [{"params": list(group), "name": name} for name, group in groups.items()]
    try:
        optimizer = build(param_groups, lr=config.lr, **{**defaults, **config.arguments, **config.options})
        if hasattr(optimizer, "train"):  # schedule-free ones hold either the weights that train or their average
            optimizer.train()
    except FAULTS as error:
        raise UserError(f"optim.name={config.name} refuses its arguments ({told(error)}): mend them") from error
    return optimizer


def check_optimizer(config: OptimConfig) -> None:
    """Try the optimizer on a small matrix at rate 0, before a model is loaded.

    Raises:
        UserError: as `build_optimizer` does, or it cannot take a step.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameter = nn.Parameter(torch.ones(TRIAL_SIDE, TRIAL_SIDE, device=device))
    optimizer = build_optimizer(config, {"unet": [parameter]})
    optimizer.param_groups[0]["lr"] = 0.0
    try:
        for _ in range(TRIAL_STEPS):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except FAULTS as error:
        raise UserError(
            f"optim.name={config.name} cannot take a step with its arguments ({told(error)}): mend them, or use "
            "another optimizer"
        ) from error


def told(error: Exception) -> str:
    """The kind and the words of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def own_optimizer(name: str) -> Callable[..., Optimizer]:
    """The user's own class, given as module:Class.

    Raises:
        UserError: there is no such class, or it is no optimizer.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except FAULTS as error:
        raise UserError(
            f"optim.name is {name} ({told(error)}): give a module that Python finds and can read, and a class in it"
        ) from error
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
