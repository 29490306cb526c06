"""A run as a list of phases: how long each lasts and the learning rates that hold in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.plan import Plan
from finetune.errors import UserError
from finetune.optim.config import OptimConfig
from finetune.optim.schedules import rate_factor


@dataclass
class PhaseConfig:
    """One stretch of the run; what it does not set is as in `optim`."""

    epochs: float | None = None
    """Length in passes over the data set; give this or `steps`."""
    steps: int | None = None
    """Length in optimizer steps."""
    lr: float | None = None
    """Base learning rate of the UNet in this phase."""
    text_encoder_lr: float | None = None
    """Base learning rate of the text encoder in this phase."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError("a phase needs either epochs or steps: give one of the two in every entry of phases")
        if (self.epochs or 0) < 0 or (self.steps or 0) < 0 or not (self.epochs or self.steps):
            raise UserError(f"a phase of phases lasts {self.epochs or self.steps or 0}: give a length above 0")


def trains_text_encoder(phases: Sequence[PhaseConfig], optim: OptimConfig) -> bool:
    """Whether the text encoder has a rate above 0 in any phase."""
    return any((optim.text_encoder_lr if p.text_encoder_lr is None else p.text_encoder_lr) > 0 for p in phases)


class Phases:
    """Phases laid out over the steps of a run."""

    def __init__(self, phases: Sequence[PhaseConfig], optim: OptimConfig, plan: Plan) -> None:
        self._phases = phases
        self._optim = optim
        self._ends: list[int] = []
        epochs, end = 0.0, 0
        for phase in phases:
            if phase.epochs is not None:
                epochs += phase.epochs
                end = plan.steps(epochs)
            elif phase.steps is not None:
                end += phase.steps
                epochs = plan.epoch(end)
            self._ends.append(end)
        self.total_steps = self._ends[-1]

    def number(self, step: int) -> int:
        """The phase that a step (counted from 0) belongs to, counted from 1."""
        return 1 + sum(step >= end for end in self._ends[:-1])

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of every parameter group at a step counted from 0: the phase's rate times the schedule."""
        phase = self._phases[self.number(step) - 1]
        factor = rate_factor(self._optim, step, self.total_steps)
        lr = self._optim.lr if phase.lr is None else phase.lr
        text_lr = self._optim.text_encoder_lr if phase.text_encoder_lr is None else phase.text_encoder_lr
        return {"unet": lr * factor, "text_encoder": text_lr * factor}
