"""What a recipe says about bad steps, and about ranks that stop or are slow."""

from dataclasses import dataclass

from finetune.checks import check_not_negative
from finetune.errors import UserError


@dataclass
class HealthConfig:
    """When a step is not to be trusted, and when a rank."""

    window: int = 256
    """Good steps that the loss and the gradient norm of the next are compared with: enough for a steady median, few
    enough to follow a run that changes over weeks."""
    warmup_steps: int = 100
    """Good steps at a phase's beginning before spikes are looked for; only NaN and Inf are bad before. A median of
    fewer is uncertain, and what a new phase does to the loss has settled by then."""
    spike_z: float = 10.0
    """A step is bad whose loss or gradient norm lies so many robust deviations above the median, by logarithms; 0 looks
    for no spikes. In 100,000 steps whose samples' losses scatter by a factor of e, noise comes to 5 to 8; 10 is at
    least 1.65 times the median, usually two to five times, and what is lower does little, as gradients are clipped."""
    bad_in_a_row: int = 10
    """So many bad steps in a row roll the run back to the checkpoint before them: chance does not make them, so the
    weights or a stretch of the data are at fault, and ten steps cost a long run nothing."""
    max_rollbacks: int = 3
    """The run fails rather than roll back more often: what three fresh stretches of data have not mended needs
    somebody to look at it. 0 fails at the first."""
    quarantine_after: int = 3
    """Samples that were drawn in so many bad steps, and in more than chance explains, are replaced from then on; 0
    never does that. Twice is easily chance among millions of samples, and each further time takes an epoch."""
    stall_s: float = 600.0
    """When a rank has done nothing for so long, all write down where they are and the run ends, to be started again;
    six times as long at the start and while saving, validating, sampling or exporting. 0 watches nobody. Keep it above
    the longest micro-batch and below strategy.timeout_s, which ends the run without saying who is at fault."""
    slow_factor: float = 1.5
    """A rank is reported as slow whose median step takes so many times as long as the others', not counting what it
    waits for them; 0 reports none. Ranks take like amounts of work, so they differ by a few percent."""

    def __post_init__(self) -> None:
        if not 1 <= self.warmup_steps <= self.window:
            raise UserError(
                f"health.warmup_steps is {self.warmup_steps} and health.window {self.window}: use at least 1 step of "
                "warm-up and no more than the window holds"
            )
        for name in ("spike_z", "stall_s", "slow_factor"):
            check_not_negative(f"health.{name}", getattr(self, name))
        if self.bad_in_a_row < 1:
            raise UserError(f"health.bad_in_a_row is {self.bad_in_a_row}: use at least 1")
        for name in ("max_rollbacks", "quarantine_after"):
            if getattr(self, name) < 0:
                raise UserError(f"health.{name} is {getattr(self, name)}: use 0 or more")
        if 0 < self.slow_factor <= 1:
            raise UserError(f"health.slow_factor is {self.slow_factor}: use a number above 1, or 0 to report none")
