"""How samples are cut and put together, and what else the plan is a function of beside the data."""

from dataclasses import dataclass

from finetune.data.config import BucketsConfig


@dataclass(frozen=True)
class Shape:
    """How samples are cut and put together from an epoch on."""

    epoch: int
    buckets: BucketsConfig
    micro_batch: int


@dataclass(frozen=True)
class PlanSettings:
    """What the plan is a function of beside the data."""

    shapes: tuple[Shape, ...]
    """In the order of their epochs; the first holds from epoch 0 on."""
    global_batch: int
    seed: int
