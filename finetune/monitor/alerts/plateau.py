"""Whether the loss still improves, told from its noise."""

import math
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

BINS = 20
"""Of a window; half of them in each of its halves."""
LEAST_IMPROVEMENT = 0.005
"""Relative, from one half of the window to the other: less than that is none."""
CERTAINTY = 4.0
"""Standard errors: with 18 degrees of freedom a one-sided error of 0.04% for each look."""

WORST_CERTAINTY = 0.01
"""Relative: a difference that is known less well is not judged."""


@dataclass
class _Bin:
    total: float = 0.0
    """Sum of the logarithms of its losses."""
    count: int = 0


class Plateau:
    """Follows a loss over the steps. Its memory does not grow with them.

    The last `steps` steps are cut into 20 bins, and each bin's losses are averaged as logarithms, which takes the edge
    off outliers and makes differences relative. There is a plateau when the mean of the older ten bins is certainly
    not 0.5% above that of the newer ten: when the difference and four of its standard errors, from the scatter of the
    bins, stay below that. These four must not exceed 1%, so that a loss too noisy for so few steps is never called a
    plateau.
    """

    def __init__(self, steps: int) -> None:
        """Begin without a past.

        Args:
            steps: length of the window, at least 20; 0 never finds anything.
        """
        self._steps = steps
        self._bins: dict[int, _Bin] = {}
        self._phase: int | None = None

    def add(self, step: int, phase: int, loss: float | None) -> dict[str, Any] | None:
        """Take in a loss; where it closes a window without improvement, the fields of the event `plateau`, and the next
        window begins with it. After a rollback steps may come again.

        Args:
            step: counted from 1.
            phase: number of its phase; with another one all begins anew.
            loss: None, and what has no logarithm, is passed over.
        """
        if not self._steps or loss is None or not 0 < loss < math.inf:
            return None
        if phase != self._phase:
            self._phase = phase
            self._bins.clear()
        number = step * BINS // self._steps
        found = self._judge(step) if self._bins and number > max(self._bins) else None
        oldest = number - BINS
        self._bins = {i: one for i, one in self._bins.items() if oldest <= i <= number and not found}
        one = self._bins.setdefault(number, _Bin())
        one.total += math.log(loss)
        one.count += 1
        return found

    def _judge(self, step: int) -> dict[str, Any] | None:
        """Of the window that has just become full, what is to be told; None where there is no plateau."""
        means = [one.total / one.count for _, one in sorted(self._bins.items())][-BINS:]
        if len(means) < BINS:
            return None
        older, newer = means[: BINS // 2], means[BINS // 2 :]
        improvement = fmean(older) - fmean(newer)
        uncertainty = CERTAINTY * math.sqrt((variance(older) + variance(newer)) / (BINS // 2))
        if uncertainty > WORST_CERTAINTY or improvement + uncertainty >= LEAST_IMPROVEMENT:
            return None
        told = {"improvement": improvement, "uncertainty": uncertainty, "loss": math.exp(fmean(newer))}
        return {"step": step, "over_steps": self._steps, **{name: round(value, 6) for name, value in told.items()}}
