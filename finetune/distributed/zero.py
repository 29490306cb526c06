"""DeepSpeed ZeRO-1 and 2: the engine, and where its partitions lie (private state of a pinned version)."""

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import deepspeed
import torch
from torch import Tensor, nn

from finetune.distributed.fragments import Flat, Piece, Ranks, dealt, whole
from finetune.errors import UserError
from finetune.strategy import StrategyConfig, reduce_bucket

VERSION = "0.19.8"
AUTOCAST = {"fp32": {"enabled": False}, "bf16": {"enabled": True, "dtype": "bfloat16"}}
# Gradients travel in fp32 under fp16: scaled sums over ranks would overflow where none of their parts does.
AUTOCAST["fp16"] = {"enabled": True, "dtype": "float16", "lower_precision_safe_modules": []}


def check_version() -> None:
    """Raise UserError on a DeepSpeed whose insides this module has not been tested with."""
    if deepspeed.__version__.split("+")[0] != VERSION:
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is installed but checkpoints need {VERSION}: "
            f"pip install deepspeed=={VERSION}"
        )


def skip_shared_memory_build() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication on CPUs: it takes a minute, gloo does without, and
    a build that was killed leaves a lock for which every later start waits without a word."""
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


class Zero:
    """A model and its optimizer, whose state is divided over the ranks.

    DeepSpeed lays out the partitions and reduces the gradients into them. Its step is not used: ours is the same under
    all strategies, can be left out, and waits for nothing.
    """

    divided = True
    SETTINGS: ClassVar[dict[str, int]] = {}
    """Of DeepSpeed's, those that the stage needs."""

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
        self._ranks = ranks
        bucket = reduce_bucket(config.name, max(p.numel() for p in names if p.requires_grad))
        communication = {"overlap_comm": True, "reduce_bucket_size": bucket}
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # which nothing depends on
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": int(config.name[-1]), **communication, **self.SETTINGS},
            "zero_allow_untested_optimizer": True,
            "data_types": {"grad_accum_dtype": "fp32"},
            "torch_autocast": AUTOCAST[config.precision],
            "steps_per_print": sys.maxsize,
        }
        self.model: Any
        self._sharded: Any
        self.model, self._sharded, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self._sharded.torch_autocast_gradscaler = None  # see LossScale
        self.optimizer: torch.optim.Optimizer = self._sharded.optimizer
        self.flats = self._partitions(names)

    def _partitions(self, names: Mapping[nn.Parameter, str]) -> list[Flat]:
        """This rank's partition of every parameter group, with the parameters' pieces that it holds. It lies in the
        weights themselves; DeepSpeed's copy of it, made for weights of lower precision, is dropped."""
        flats = self._sharded.single_partition_of_fp32_groups
        for flat, partitions in zip(flats, self._sharded.parallel_partitioned_bit16_groups, strict=True):
            flat.data = partitions[self._ranks.rank]
        self._sharded._link_all_hp_params()  # which held the copies as well
        return [
            Flat(flat, [_piece(names[p], p._hp_mapping) for p in group if p._hp_mapping is not None], i)
            for i, (flat, group) in enumerate(zip(flats, self._sharded.bit16_groups, strict=True))
        ]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; after the step's last one this rank's share of the mean's lies at the flat
        tensors."""
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss)
        if last:
            shares = self._sharded.averaged_gradients
            for i, flat in enumerate(self.flats):
                flat.tensor.grad = torch.cat([part.reshape(-1) for part in shares.pop(i)])
            self._sharded.zero_grad()

    def clear(self) -> None:
        """Drop all gradients, also in the midst of a step."""
        for flat in self.flats:
            flat.tensor.grad = None
        for gradients in self._accumulated:
            gradients.clear()
        self._sharded.zero_grad()

    def resting(self, parameters: Mapping[str, nn.Parameter]) -> list[Flat]:
        """Parameters that the optimizer does not step, as flat tensors."""
        return dealt([whole(name, parameter) for name, parameter in parameters.items()], self._ranks)

    def publish(self) -> None:
        """Give the module the values of all ranks' flat tensors."""
        self._sharded.update_lp_params()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Nothing to do: the model has all of its weights."""
        yield

    def leave(self) -> None:
        """Nothing to do: DeepSpeed has groups of its own."""

    def close(self) -> None:
        """Take DeepSpeed off the module, whose parameters then own the values of all ranks' flat tensors."""
        self.optimizer.state.clear()
        self.clear()
        self.publish()
        self.model.module_forward_pre_hook.remove()
        self.model.module_forward_post_hook.remove()
        self._give_back()
        self.optimizer.param_groups.clear()
        self.flats.clear()
        # The caller may still hold the engine, which is to keep nothing alive.
        self.model.optimizer = self.model.basic_optimizer = self.model.client_optimizer = None
        del self.model, self._sharded, self.optimizer
        gc.collect()  # the engine is full of cycles

    @property
    def _accumulated(self) -> list[dict[int, Any]]:
        """Where DeepSpeed keeps gradients between passes, beside the parameters themselves."""
        return [self._sharded.averaged_gradients, self._sharded.all_grad_tensors]

    def _give_back(self) -> None:
        self.model.destroy()
        for group in self._sharded.bit16_groups:
            for parameter in group:
                parameter.data, parameter.grad = parameter.data.clone(), None


def _piece(name: str, mapping: Any) -> Piece:
    within, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, within.start, place.start, place.numel)
