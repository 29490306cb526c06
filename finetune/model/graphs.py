"""torch.compile block by block, for shapes that are known beforehand: nothing is compiled in the midst of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch._dynamo
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
"""Nearly all of a UNet's work and of a VAE's, and what gradient checkpointing computes again as a whole."""
NO_LIMIT = 1 << 16
"""Graphs of one function; those that there can be are bounded by the blocks and by the shapes that are chosen."""


class Kind(NamedTuple):
    """Of calls that may share a graph; whether they do, dynamo's guards decide."""

    block: type[nn.Module]
    shape: torch.Size
    grad: bool
    """Whether there will be a backward pass."""


class Graphs:
    """Compiled forms of the blocks of some models, for the shapes that they met within `compiling`. All blocks of a
    kind share a graph where their weights have the same shapes, and so do all lengths of prompts.

    Any other shape runs as it is, and so does a call that no graph fits. Parameters keep their names.
    """

    def __init__(self, *models: nn.Module) -> None:
        self._kinds = set[Kind]()
        self._compiles = False
        self._compiled = torch.compile(_forward, dynamic=False)
        for block in (module for model in models for module in model.modules() if isinstance(module, BLOCKS)):
            block._compiled_call_impl = partial(self._call, block)  # what nn.Module calls in place of its own
        torch.compiler.set_stance("eager_on_recompile")

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Within it every shape that a block meets is compiled, unless it has been before. Those that do not come up
        again run as they are from then on."""
        self._kinds.clear()
        self._compiles = True
        limits = torch._dynamo.config.patch(recompile_limit=NO_LIMIT, accumulated_recompile_limit=NO_LIMIT)
        try:
            with torch.compiler.set_stance("default"), limits:
                yield
        finally:
            self._compiles = False

    def _call(self, block: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kind = Kind(type(block), hidden_states.shape, torch.is_grad_enabled())
        if self._compiles:
            self._kinds.add(kind)
            for told in (*args, *kwargs.values()):
                if isinstance(told, Tensor) and told.ndim == 3:  # the prompts' states, [B, length, D]
                    torch._dynamo.maybe_mark_dynamic(told, 1)
        call = self._compiled if kind in self._kinds else _forward
        return call(block, hidden_states, *args, **kwargs)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return block._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
