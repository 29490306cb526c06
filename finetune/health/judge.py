"""Whether a step may change the weights, decided before it does, from two numbers that all ranks have alike."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from finetune.health.config import HealthConfig

PER_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
LEAST_DEVIATION = 0.05
"""Of logarithms: values that hardly vary are taken to vary by 5%, or their noise would be spikes."""
LEAST_VALUE = 1e-30
"""Below it a loss or norm counts as this, which has a logarithm."""
MOST_OVERFLOWS = 32
"""Under fp16 so many overflows in a row are ordinary: from 65,536 a loss scale is at 2⁻¹⁶ then, where nothing sound
overflows any more."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a step."""

    reason: str | None = None
    """Why it is bad; None where its update is to be made."""
    streak: int = 0
    """Bad steps in a row up to this one, itself included."""
    rolls_back: bool = False
    """Whether the streak is so long that the weights before it have to be restored."""
    ended: int = 0
    """Of a good step: bad steps in a row right before it."""


class Health:
    """Judges steps by those before them. Pure: equal states and steps give equal verdicts, on every rank."""

    def __init__(self, config: HealthConfig, *, fp16: bool) -> None:
        """Begin without anything to compare with.

        Args:
            fp16: whether gradients are expected to overflow now and then, which the loss scale sees to.
        """
        self._config = config
        self._fp16 = fp16
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._phase = self._last = self._streak = self._overflows = 0

    def judge(self, step: int, loss: float, norm: float, *, phase: int) -> Verdict:
        """What is to become of a step; to be asked once of each, in their order.

        Args:
            step: counted from 0; after a gap, as a rollback leaves one, a new streak begins.
            loss: mean over all ranks.
            norm: global norm of the gradients before clipping.
            phase: number of the step's phase; with another one the comparison begins anew.
        """
        if phase != self._phase:
            self._losses.clear()
            self._norms.clear()
        before = self._streak if step == self._last + 1 else 0
        reason = self._fault(loss, norm)
        self._phase, self._last = phase, step
        if reason is None:
            self._streak = 0
            self._take_in(loss, norm)
            return Verdict(ended=before)
        self._streak = before + 1
        return Verdict(reason, self._streak, self._streak >= self._config.bad_in_a_row)

    def state(self) -> dict[str, Any]:
        """All that later verdicts depend on beside the settings, as plain finite numbers; JSON keeps them exactly."""
        counts = {"phase": self._phase, "last": self._last, "streak": self._streak, "overflows": self._overflows}
        return {**counts, "losses": list(self._losses), "norms": list(self._norms)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. A window that has been made smaller keeps the newest steps."""
        self._phase, self._last = state["phase"], state["last"]
        self._streak, self._overflows = state["streak"], state["overflows"]
        self._losses = deque(state["losses"], self._config.window)
        self._norms = deque(state["norms"], self._config.window)

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if spike := self._spike("loss", loss, self._losses):
            return spike
        if math.isfinite(norm):
            self._overflows = 0
            return self._spike("gradient norm", norm, self._norms)
        if not self._fp16:
            return f"gradient norm is {norm}"
        self._overflows += 1
        return f"{self._overflows} overflows in a row" if self._overflows > MOST_OVERFLOWS else None

    def _spike(self, name: str, value: float, window: Iterable[float]) -> str | None:
        """What is wrong with a value, if it lies too far above those of the window.

        The distance is a robust z-score, |x − median| / (1.4826 MAD), of logarithms: losses and norms vary by factors,
        are skewed to the right, and shrink as training goes on, which leaves the deviation of their logarithms alone.
        """
        known = list(window)
        if not self._config.spike_z or len(known) < self._config.warmup_steps:
            return None
        middle = median(known)
        above = _logarithm(value) - middle
        if above < self._config.spike_z * LEAST_DEVIATION:  # spares the deviation of nearly all steps
            return None
        deviation = PER_DEVIATION * median(abs(one - middle) for one in known)
        z = above / max(deviation, LEAST_DEVIATION)
        if z < self._config.spike_z:
            return None
        return f"{name} spike: {value:.4g} against a median of {math.exp(middle):.4g} (z {z:.1f})"

    def _take_in(self, loss: float, norm: float) -> None:
        self._losses.append(_logarithm(loss))
        if math.isfinite(norm):
            self._norms.append(_logarithm(norm))


def _logarithm(value: float) -> float:
    return math.log(max(value, LEAST_VALUE))
