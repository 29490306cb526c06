"""DeepSpeed ZeRO-3: the weights themselves are divided, and come together where they are needed (private state of a
pinned version)."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import nn

from finetune.distributed.fragments import Flat, Piece, Ranks
from finetune.distributed.zero import Zero
from finetune.strategy import StrategyConfig


class Zero3(Zero):
    """A model and its optimizer, both divided over the ranks, what trains and what rests."""

    # One flat tensor for a parameter group, however large. No small weights that stay together: a module that reads one
    # of another module's (CLIP's embeddings do) is found out only when it is not there.
    SETTINGS: ClassVar[dict[str, int]] = {"sub_group_size": sys.maxsize, "stage3_param_persistence_threshold": 0}

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Mapping[nn.Parameter, str],
        *,
        ranks: Ranks,
        accumulation: int,
        config: StrategyConfig,
    ) -> None:
        before = [(thing, dict(vars(thing))) for thing in chain(module.modules(), module.parameters())]
        super().__init__(module, optimizer, names, ranks=ranks, accumulation=accumulation, config=config)
        # What others add later is theirs: transformers notes where it has put its hooks.
        self._added = [(thing, vars(thing).keys() - own.keys()) for thing, own in before]
        self._parameters = [(thing, own["_parameters"]) for thing, own in before if isinstance(thing, nn.Module)]

    def clear(self) -> None:
        """Drop all gradients, also in the midst of a pass, which DeepSpeed does only on a GPU."""
        self.model.module.zero_grad()
        super().clear()

    def resting(self, parameters: Mapping[str, nn.Parameter]) -> list[Flat]:
        """This rank's share of each parameter that the optimizer does not step, as a flat tensor."""
        return [Flat(p.ds_tensor, self._pieces(name, p, 0)) for name, p in parameters.items()]  # type: ignore[attr-defined]

    def publish(self) -> None:
        """Drop what is still together of the weights; they come from the flat tensors when they are needed."""
        self._sharded.checkpoint_event_prologue()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it the module has all weights on every rank, and no hook that would wait for other ranks."""
        hooks = self._sharded.parameter_offload
        self._sharded.checkpoint_event_prologue()
        with GatheredParameters(list(self.model.module.parameters())):
            hooks._remove_module_hooks()
            hooks.forward_hooks, hooks.backward_hooks = [], []
            try:
                yield
            finally:
                hooks.setup_zero_stage3_hooks()

    @property
    def _accumulated(self) -> list[dict[int, Any]]:
        return [self._sharded.averaged_gradients]

    def _partitions(self, names: Mapping[nn.Parameter, str]) -> list[Flat]:
        for parameter, name in names.items():
            held = sum(piece.numel for piece in self._pieces(name, parameter, 0))
            parameter.ds_tensor[held:].zero_()  # type: ignore[attr-defined]  # padding, else as memory happened to be
        return [self._partition(i, names) for i in range(len(self._sharded.fp16_groups))]

    def _partition(self, number: int, names: Mapping[nn.Parameter, str]) -> Flat:
        """This rank's share of a group's weights, which becomes what the optimizer steps; DeepSpeed's copy of it, made
        for weights of lower precision, is dropped."""
        share, group = self._sharded.fp16_partitioned_groups_flat[number], self._sharded.sub_group_to_group_id[number]
        self._sharded.fp32_partitioned_groups_flat[number] = share.requires_grad_()
        self.optimizer.param_groups[group]["params"].append(share)
        pieces, offset = list[Piece](), 0
        for parameter in self._sharded.fp16_groups[number]:
            pieces += self._pieces(names[parameter], parameter, offset)
            offset += parameter.partition_numel()
        return Flat(share, pieces, group)

    def _pieces(self, name: str, parameter: Any, offset: int) -> list[Piece]:
        """The piece of a parameter that this rank holds, at an offset in a flat tensor; none where it holds nothing."""
        size: int = parameter.partition_numel()
        start = self._ranks.rank * size
        held = min(size, parameter.ds_numel - start)
        return [Piece(name, start, offset, held)] if held > 0 else []

    def _give_back(self) -> None:
        weights = {p: _gathered(p) for p in self.model.module.parameters()}
        self.model.destroy()
        for thing, names in self._added:
            for name in [name for name in vars(thing) if name in names or name.startswith("ds_")]:
                delattr(thing, name)
        for module, parameters in self._parameters:
            module._parameters = parameters
        for parameter, values in weights.items():
            parameter.data, parameter.grad = values, None
        self._added.clear()
        self._parameters.clear()


def _gathered(parameter: nn.Parameter) -> torch.Tensor:
    """A copy of a parameter's values, all of them."""
    with GatheredParameters([parameter]):
        return parameter.detach().clone()
