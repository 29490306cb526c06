"""What a recipe says about how the work is spread over processes."""

from dataclasses import dataclass

from finetune.errors import UserError

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3")
DIVIDED = ("zero1", "zero2", "zero3")
"""Strategies under which every rank steps a share of the parameters."""
PRECISIONS = ("fp32", "bf16", "fp16")
BUCKET = 1 << 24
"""Elements of gradients that ZeRO reduces together, while the backward pass goes on. DeepSpeed keeps two buffers of as
many fp32 elements for each precision that gradients travel in; its own default would take 8 GB."""


@dataclass
class StrategyConfig:
    """One process, or as many as are launched: copies of one another (ddp), or DeepSpeed ZeRO."""

    name: str = "zero2"
    """single (one process), ddp (every process holds all), zero1 (optimizer state sharded), zero2 (gradients too) or
    zero3 (weights too)."""
    precision: str = "bf16"
    """fp32, or autocast over fp32 weights: bf16, or fp16 with dynamic loss scaling for GPUs without bf16."""
    timeout_s: int = 1800
    """How long a rank waits for the others before the run is given up."""
    threads: int = 0
    """CPU threads per process; 0 leaves it to torch and the launcher. Sums depend on it, so a CPU run that is to be
    repeated digit for digit needs it fixed."""

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise UserError(f"strategy.name is {self.name!r}: use one of {', '.join(STRATEGIES)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"strategy.precision is {self.precision!r}: use one of {', '.join(PRECISIONS)}")
        if self.timeout_s < 1 or self.threads < 0:
            raise UserError("strategy.timeout_s must be at least 1 and strategy.threads not below 0")


def reduce_bucket(strategy: str, largest: int) -> int:
    """Elements of gradients that a ZeRO strategy reduces together. ZeRO-2 and 3 let go of gradients that are still
    being reduced, unless a bucket has taken them in.

    Args:
        largest: elements of the largest parameter that trains.
    """
    return BUCKET if strategy == "zero1" else max(BUCKET, largest)
