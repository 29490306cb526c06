"""DeepSpeed ZeRO 1 and 2: the configuration, and where its partitions lie (private state of a pinned version)."""

import sys
from collections.abc import Mapping
from typing import Any

import deepspeed
from torch import nn

from finetune.distributed.fragments import Flat, Piece
from finetune.errors import UserError
from finetune.strategy import StrategyConfig

VERSION = "0.19.8"


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


def engine_config(
    config: StrategyConfig, *, micro_batch: int, accumulation: int, max_grad_norm: float
) -> dict[str, Any]:
    """DeepSpeed's own configuration for a strategy."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": int(config.name[-1])},
        "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32"},
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": sys.maxsize,
    }


def partitions(optimizer: Any, names: Mapping[nn.Parameter, str]) -> list[Flat]:
    """This rank's fp32 partition of every parameter group, with the parameters' pieces that it holds."""
    return [
        Flat(flat, [_piece(names[p], p._hp_mapping) for p in group if p._hp_mapping is not None])
        for flat, group in zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True)
    ]


def unlink_optimizer_state(optimizer: Any) -> None:
    """Drop DeepSpeed's own views of the optimizer state, which would keep moments alive that have been let go."""
    for group in optimizer.bit16_groups:
        for parameter in group:
            if parameter._hp_mapping is not None:
                parameter._hp_mapping.optim_fragment = None
    optimizer._hp_optimizer_states_linked = False


def _piece(name: str, mapping: Any) -> Piece:
    within, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, within.start, place.start, place.numel)
