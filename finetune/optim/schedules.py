"""The factor on base learning rates at a step; a pure function of the step, so there is no state to save."""

import math
from collections.abc import Callable

from finetune.optim.config import ScheduleConfig, parse_steps


def constant(config: ScheduleConfig, progress: float) -> float:
    """Always 1."""
    return 1.0


def linear(config: ScheduleConfig, progress: float) -> float:
    """From 1 at the run's start evenly to 0 at its end."""
    return 1.0 - progress


def cosine(config: ScheduleConfig, progress: float) -> float:
    """Half a cosine wave from 1 to 0 (arXiv 1608.03983, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def polynomial(config: ScheduleConfig, progress: float) -> float:
    """A power of what is left of the run."""
    return float((1.0 - progress) ** config.power)


def wsd(config: ScheduleConfig, progress: float) -> float:
    """1 until the decay begins; then to 0, evenly or as 1 - sqrt(share done) (arXiv 2405.18392)."""
    decayed = max(0.0, 1.0 - (1.0 - progress) / config.decay_share)
    return 1.0 - (math.sqrt(decayed) if config.decay == "sqrt" else decayed)


SHAPES: dict[str, Callable[[ScheduleConfig, float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "polynomial": polynomial,
    "wsd": wsd,
}


def rate_factor(config: ScheduleConfig, lr: float, step: int, total_steps: int) -> float:
    """The factor on base rates for the step counted from 0, of `total_steps`: the schedule times the warm-up's rise.

    Args:
        lr: the base rate that `config.steps` gives its rates for.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.name == "steps":
        return warmup * next(rate for rate, end in parse_steps(config.steps) if step < end) / lr
    # In whole numbers, so that a restart falls on its step whatever the rounding.
    progress = step * config.cycles % total_steps / total_steps if step < total_steps else 1.0
    shape = SHAPES[config.name](config, progress)
    return warmup * (config.final_factor + (1.0 - config.final_factor) * shape)
