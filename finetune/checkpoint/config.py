"""What a recipe says about checkpoints."""

from dataclasses import dataclass

from finetune.errors import UserError


@dataclass
class CheckpointConfig:
    """When to save and how many to keep."""

    every_steps: int = 500
    """Optimizer steps between checkpoints; the run's end is always saved."""
    keep: int = 3
    """How many of the newest are kept."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise UserError("checkpoint.every_steps and checkpoint.keep must be at least 1")
