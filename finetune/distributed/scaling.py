"""Loss scaling for fp16, the same under all strategies."""

from dataclasses import dataclass

FIRST, GROWTH, BACKOFF, GROWTH_STEPS = 65536.0, 2.0, 0.5, 2000


@dataclass
class LossScale:
    """The factor that lifts small gradients into fp16's range (Micikevicius et al., 1710.03740, section 3.2), by the
    rule and with the constants of torch.amp.GradScaler.

    That class itself can't serve under ZeRO: DeepSpeed would clip gradients that are still scaled, and update one
    scaler per rank, once for each parameter group.
    """

    factor: float = FIRST
    steady_steps: int = 0
    """Steps since the factor has changed."""

    def restart(self, factor: float = FIRST, steady_steps: int = 0) -> None:
        """Begin anew, or go on from what was saved."""
        self.factor, self.steady_steps = factor, steady_steps

    def update(self, *, finite: bool) -> None:
        """Halve the factor after gradients that were not finite; double it after 2,000 steps that were."""
        self.steady_steps = self.steady_steps + 1 if finite else 0
        if not finite:
            self.factor *= BACKOFF
        elif self.steady_steps == GROWTH_STEPS:
            self.factor, self.steady_steps = self.factor * GROWTH, 0
