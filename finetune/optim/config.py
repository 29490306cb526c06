"""What a recipe says about the optimizer and its rates."""

from dataclasses import dataclass, field

from finetune.checks import check_choice
from finetune.errors import UserError

OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("constant", "linear")


@dataclass
class OptimConfig:
    """The optimizer, the rates that phases multiply, and clipping."""

    name: str = "adamw8bit"
    """adamw (torch) or adamw8bit (bitsandbytes)."""
    lr: float = 1e-5
    """Base learning rate of the UNet."""
    text_encoder_lr: float = 1e-6
    """Base learning rate of the text encoder; 0 freezes it."""
    schedule: str = "linear"
    """Factor on the base rates over the whole run: constant, or linear down to 0."""
    warmup_steps: int = 0
    """Steps over which the factor first rises from 0."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, OPTIMIZERS)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        if self.lr <= 0.0 or self.text_encoder_lr < 0.0:
            raise UserError(
                f"optim.lr is {self.lr} and optim.text_encoder_lr {self.text_encoder_lr}: "
                "the first must be above 0, the second not below"
            )
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise UserError(f"optim.betas is {list(self.betas)}: give two numbers in [0, 1)")
        if self.max_grad_norm <= 0.0:
            raise UserError(f"optim.max_grad_norm is {self.max_grad_norm}: use a number above 0")
        if self.warmup_steps < 0:
            raise UserError(f"optim.warmup_steps is {self.warmup_steps}: use 0 or more")
