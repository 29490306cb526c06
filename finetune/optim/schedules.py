"""The factor on all base learning rates at a step; a pure function of the step, so there is no state to save."""

from collections.abc import Callable

from finetune.optim.config import OptimConfig


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 at the run's start to 0 at its end."""
    return 1.0 - progress


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear}


def rate_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The factor for the step counted from 0, of `total_steps`: the schedule times the warm-up's rise."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return warmup * SCHEDULES[config.schedule](step / total_steps)
