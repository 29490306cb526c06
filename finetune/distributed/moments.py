"""Adam's two moments in fp32, whichever optimizer keeps them and however: torch as they are, bitsandbytes in 8 bits."""

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor

BLOCK_8BIT = 256
NAMES = ("exp_avg", "exp_avg_sq")


def is_8bit(state: Mapping[str, Any]) -> bool:
    """Whether a tensor's state is bitsandbytes' (which keeps what is below 4,096 elements in 32 bits)."""
    return "state1" in state


def read_moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Both moments as flat fp32 tensors; none before the first step."""
    if is_8bit(state):
        return {name: _dequantised(state, number) for number, name in enumerate(NAMES, start=1)}
    return {name: state[name].view(-1) for name in NAMES if name in state}


def write_moments(optimizer: torch.optim.Optimizer, tensor: Tensor, moments: Mapping[str, Tensor], step: int) -> None:
    """Give an optimizer the state of a tensor that it steps: flat fp32 moments after `step` steps."""
    if not isinstance(optimizer, Optimizer8bit):
        shaped = {name: moments[name].view_as(tensor) for name in NAMES}
        optimizer.state[tensor] = {"step": torch.tensor(float(step)), **shaped}
        return
    group, place = _position(optimizer, tensor)
    optimizer.init_state(optimizer.param_groups[group], tensor, group, place)
    state = optimizer.state[tensor]
    state["step"] = step
    for number, name in enumerate(NAMES, start=1):
        kept, values = state[f"state{number}"], moments[name].view_as(tensor)
        if kept.dtype == torch.float32:
            kept.copy_(values)
        else:
            code, absmax = state[f"qmap{number}"], state[f"absmax{number}"]
            quantize_blockwise(values, code=code, absmax=absmax, out=kept, blocksize=BLOCK_8BIT)


def _dequantised(state: Mapping[str, Any], number: int) -> Tensor:
    values: Tensor = state[f"state{number}"]
    if values.dtype == torch.float32:
        return values.view(-1)
    code, absmax = state[f"qmap{number}"], state[f"absmax{number}"]
    dequantised: Tensor = dequantize_blockwise(values, absmax=absmax, code=code, blocksize=BLOCK_8BIT)
    return dequantised.view(-1)


def _position(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[int, int]:
    """The tensor's (group, place in it), by which bitsandbytes finds its settings."""
    return next(
        (i, k)
        for i, group in enumerate(optimizer.param_groups)
        for k, parameter in enumerate(group["params"])
        if parameter is tensor
    )
