"""What a rank holds all the time: weights, gradients, the optimizer's state and a strategy's buffers. The law was found
by measuring, and tests measure it again."""

from dataclasses import dataclass

from finetune.optim.config import EmaConfig
from finetune.strategy import StrategyConfig, reduce_bucket

STATE_BYTES = {
    **dict.fromkeys(("adamw", "paged_adamw", "adopt", "schedule_free_adamw"), 8.0),
    **dict.fromkeys(("adamw8bit", "paged_adamw8bit"), 2.0 + 8 / 256),
    **dict.fromkeys(("lion", "sgd"), 4.0),
    **dict.fromkeys(("lion8bit", "sgd8bit"), 1.0 + 4 / 256),
    "prodigy": 16.0,
    "dadapt_adam": 12.0,
    "adafactor": 0.0,
}
"""Of the optimizers' state, for each parameter; a block of 256 8-bit values has one fp32 scale. Adafactor's rows and
columns do not count, and one of the user's own is taken to be as AdamW."""


@dataclass(frozen=True)
class Parameters:
    """How many a model has."""

    trained: int
    frozen: int
    largest: int
    """Of one tensor that trains."""


@dataclass(frozen=True)
class Held:
    """Bytes of a rank."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    """Of the strategy."""
    ema: int


def held(parameters: Parameters, optimizer: str, ema: EmaConfig, strategy: StrategyConfig, world: int) -> Held:
    """What a rank holds while a step's gradients are added up.

    Args:
        world: ranks among which ZeRO divides.
    """
    trained, every = parameters.trained, parameters.trained + parameters.frozen
    divided = strategy.name.startswith("zero")
    share = trained / world if divided else trained
    gradients = share if strategy.name in ("zero2", "zero3") else trained
    buckets = 0.0
    if divided:
        bucket = reduce_bucket(strategy.name, parameters.largest)
        buckets = 4.0 * 2 * bucket * (2 if strategy.precision == "bf16" else 1)  # two for each type that is sent
    if strategy.name == "zero3":
        buckets += 4.0 * every / world  # the shares, beside weights that have come together and stay so
    return Held(
        weights=4 * every,
        gradients=int(4 * gradients),
        optimizer=int(STATE_BYTES.get(optimizer, 8.0) * share),
        buffers=int(buckets),
        ema=int(4 * share) if ema.decay and ema.device == "model" else 0,
    )
