"""A run as a list of phases: where each ends, and what it changes in how and on what the model is trained."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from omegaconf import MISSING

from finetune.data.config import BucketsConfig
from finetune.data.journal import Setting
from finetune.data.plan import Plan
from finetune.data.shapes import Shape
from finetune.errors import UserError
from finetune.optim.config import OptimConfig
from finetune.overrides import overridden

UNTIL = re.compile(r"(\d+(?:\.\d+)?)\s*(epoch|step)s?")
OWN_SETTINGS = ("betas", "eps", "weight_decay", "options")
"""Settings of one optimizer that say nothing to another."""
RATES = ("lr", "text_encoder_lr", "text_encoder_2_lr")
"""Settings of the optimizer that may be set while the run goes on."""


class Position(NamedTuple):
    """A place in the run, counted from its start."""

    amount: float
    unit: str
    """epoch or step."""

    @property
    def is_border(self) -> bool:
        """Whether an epoch begins there for certain."""
        return self.unit == "epoch" and self.amount.is_integer()

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}s"


@dataclass
class PhaseConfig:
    """One stretch of the run. What it changes holds until a later phase changes it again."""

    until: str = MISSING
    """Where it ends, counted from the run's start: `10 epochs` or `5000 steps`; the last one's is the run's end."""
    optim: dict[str, Any] = field(default_factory=dict)
    """What changes in `optim`: rates, freezing and schedules at any step, the optimizer at an epoch's border; another
    optimizer begins with its own defaults."""
    buckets: dict[str, Any] = field(default_factory=dict)
    """What changes in `data.buckets`, at an epoch's border."""
    micro_batch: int | None = None
    """What `train.micro_batch` changes to, at an epoch's border."""

    def __post_init__(self) -> None:
        if self.until == MISSING:
            return
        if not (given := UNTIL.fullmatch(self.until.strip())) or not float(given[1]):
            raise UserError(f"a phase's until is {self.until!r}: give a place such as '10 epochs' or '5000 steps'")
        if given[2] == "step" and not float(given[1]).is_integer():
            raise UserError(f"a phase's until is {self.until!r}: give whole steps")

    @property
    def end(self) -> Position:
        """`until`, read."""
        given = UNTIL.fullmatch(self.until.strip())
        assert given is not None
        return Position(float(given[1]), given[2])


@dataclass(frozen=True)
class Phase:
    """Everything that may differ between phases, as it is in one of them."""

    end: Position
    optim: OptimConfig
    buckets: BucketsConfig
    micro_batch: int
    rates: frozenset[str] = frozenset()
    """Those of RATES that the phase itself gives."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a reader wants to know of it."""
        return {
            "until": str(self.end),
            "micro_batch": self.micro_batch,
            "resolution_px": self.buckets.resolution_px,
            "optimizer": self.optim.name,
            "lr": self.optim.lr,
            "text_encoder_lr": self.optim.text_encoder_lr,
        }

    @property
    def optimizer(self) -> tuple[Any, ...]:
        """What the optimizer is built from, beside the groups of parameters."""
        optim = self.optim
        return (optim.name, optim.betas, optim.eps, optim.weight_decay, optim.options)


def unfold(configs: Sequence[PhaseConfig], optim: OptimConfig, buckets: BucketsConfig, micro_batch: int) -> list[Phase]:
    """The phases of a recipe, each with all that holds in it.

    Raises:
        UserError: a phase changes what there is not, to what is not allowed, or where it must not.
    """
    phases: list[Phase] = []
    for number, config in enumerate(configs, 1):
        if config.optim.get("name", optim.name) != optim.name:
            defaults = OptimConfig()
            optim = replace(optim, **{name: getattr(defaults, name) for name in OWN_SETTINGS})
        optim = overridden(optim, config.optim, f"phase {number}: optim", "optim")
        buckets = overridden(buckets, config.buckets, f"phase {number}: buckets", "data.buckets")
        micro_batch = micro_batch if config.micro_batch is None else config.micro_batch
        phases.append(Phase(config.end, optim, buckets, micro_batch, frozenset(RATES) & config.optim.keys()))
        if number > 1:
            _check_border(number, *phases[-2:])
    return phases


def _check_border(number: int, before: Phase, after: Phase) -> None:
    changes = {
        "the optimizer": before.optimizer != after.optimizer,
        "buckets": before.buckets != after.buckets,
        "micro_batch": before.micro_batch != after.micro_batch,
    }
    changed = [what for what, differs in changes.items() if differs]
    if changed and not before.end.is_border:
        raise UserError(
            f"phase {number} changes {' and '.join(changed)}, which needs an epoch's border, but phase {number - 1} "
            f"ends at {before.end}: let it end after whole epochs"
        )


def shapes(phases: Sequence[Phase]) -> tuple[Shape, ...]:
    """The shapes that the data has in the course of the phases."""
    found = [Shape(0, phases[0].buckets, phases[0].micro_batch)]
    for before, phase in pairwise(phases):
        if (phase.buckets, phase.micro_batch) != (before.buckets, before.micro_batch):
            found.append(Shape(int(before.end.amount), phase.buckets, phase.micro_batch))
    return tuple(found)


def rate_of(setting: Setting) -> str | None:
    """The one of RATES that a setting is; None where it is another."""
    part, _, name = setting.key.partition(".")
    return name if part == "optim" and name in RATES else None


class Phases:
    """Phases laid out over the steps of a run."""

    def __init__(self, phases: Sequence[Phase], plan: Plan, settings: Sequence[Setting] = ()) -> None:
        """Find their ends.

        Args:
            settings: what was set while the run went on.

        Raises:
            UserError: a phase ends before it has begun.
        """
        self._phases = phases
        self._rates = [setting for setting in settings if rate_of(setting)]
        self._set = lru_cache(maxsize=8)(self._with_rates)
        self._ends: list[int] = []
        for number, phase in enumerate(phases, 1):
            end = plan.steps(phase.end.amount) if phase.end.unit == "epoch" else int(phase.end.amount)
            if self._ends and end <= self._ends[-1]:
                raise UserError(
                    f"phase {number} is to end at {phase.end} (step {end:,}), but the one before it ends at step "
                    f"{self._ends[-1]:,}: `until` is counted from the run's start, so let it rise; or, where an "
                    "epoch is shorter than a step, lower train.global_batch"
                )
            self._ends.append(end)
        self.total_steps = self._ends[-1]

    def number(self, step: int) -> int:
        """The phase that a step (counted from 0) belongs to, counted from 1; steps beyond the end are of the last."""
        return 1 + bisect_right(self._ends[:-1], step)

    def at(self, step: int) -> Phase:
        """The phase that a step belongs to, with the rates that have been set by then: each holds until it is set again
        or a later phase gives it."""
        number = self.number(step)
        return self._set(number, tuple(s for s in self._rates if s.step <= step and self._holds(s, number)))

    def span(self, number: int) -> range:
        """All steps of a phase, counted from 1."""
        return range(self._ends[number - 2] if number > 1 else 0, self._ends[number - 1])

    def _holds(self, setting: Setting, number: int) -> bool:
        """Whether no phase after the one in which a rate was set gives it, up to the phase `number`."""
        later = self._phases[self.number(setting.step) : number]
        return not any(rate_of(setting) in phase.rates for phase in later)

    def _with_rates(self, number: int, settings: tuple[Setting, ...]) -> Phase:
        phase = self._phases[number - 1]
        held = {rate_of(setting): setting.value for setting in settings}
        changes = {rate: value for rate, value in held.items() if rate and value is not None}
        return replace(phase, optim=overridden(phase.optim, changes, "set", "optim")) if changes else phase
