"""Modules that compute in the types of CUDA's autocast, and with flash attention, wherever they lie: the meta device
has neither, and what is kept for the backward pass depends on both."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

INPUTS = ("query", "key", "value")


class FlashAttention(TorchFunctionMode):
    """Within it attention keeps queries, keys, values, its result and a number for each query, and never the matrix
    (Dao et al., arXiv 2205.14135), as torch's kernels for CUDA do in all precisions."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, but for attention as it is."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(INPUTS, args, strict=False)) | dict(kwargs or {})
        return torch.ops.aten._scaled_dot_product_flash_attention(*(given[name] for name in INPUTS))[0]


class Autocast:
    """CUDA's autocast for modules that are told of it once; entered for a forward pass. Convolutions and linear layers
    compute in the lower type, from copies of their weights that last as long as the pass, norms in fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Change the modules within `module`; fp32 leaves them alone."""
        self._dtype = dtype
        self._copies: list[Tensor] | None = None
        for each in module.modules() if dtype != torch.float32 else ():
            if isinstance(each, nn.Linear | nn.Conv2d):
                each.forward = partial(self._lower, each)  # type: ignore[method-assign]
            elif isinstance(each, nn.GroupNorm | nn.LayerNorm):
                each.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    def __enter__(self) -> None:
        self._copies = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copies = None

    def _lower(self, layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
        weight = layer.weight.to(self._dtype)
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        if self._copies is not None and layer.weight.requires_grad:
            self._copies.append(weight)
        compute: Callable[..., Tensor] = functional.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        return compute(values.to(self._dtype), weight, bias)
