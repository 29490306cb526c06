"""What a recipe says about the optimizer, its rates, what it trains, and the average that is kept of the weights."""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from finetune.checks import check_above_zero, check_choice, check_not_negative
from finetune.errors import UserError

SCHEDULES = {
    "constant": (),
    "linear": ("final_factor",),
    "cosine": ("final_factor", "cycles"),
    "polynomial": ("final_factor", "power"),
    "wsd": ("final_factor", "decay_share", "decay"),
    "steps": ("steps",),
}
"""The schedules, each with those of its settings that not all of them have."""
AS_UNET = "unet"
"""The name of a schedule that is the UNet's."""
DECAYS = ("linear", "sqrt")

OPTIMIZERS = {
    "adamw": ("betas", "eps", "weight_decay"),
    "adamw8bit": ("betas", "eps", "weight_decay"),
    "paged_adamw": ("betas", "eps", "weight_decay"),
    "paged_adamw8bit": ("betas", "eps", "weight_decay"),
    "adopt": ("betas", "eps", "weight_decay"),
    "lion": ("betas", "weight_decay"),
    "lion8bit": ("betas", "weight_decay"),
    "prodigy": ("betas", "eps", "weight_decay"),
    "dadapt_adam": ("betas", "eps", "weight_decay"),
    "adafactor": ("weight_decay",),
    "sgd": ("weight_decay",),
    "sgd8bit": ("weight_decay",),
    "schedule_free_adamw": ("betas", "eps", "weight_decay"),
}
"""The optimizers, each with those of betas, eps and weight_decay that it takes."""
STATE_KINDS = {
    **dict.fromkeys(("adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"), "adam"),
    **dict.fromkeys(("lion", "lion8bit"), "lion"),
    **dict.fromkeys(("sgd", "sgd8bit"), "sgd"),
}
"""What an optimizer's state means, where several share it."""
ESTIMATORS = ("prodigy", "dadapt_adam")
"""Optimizers that estimate one rate for all that trains; `lr` multiplies it."""
UNSHARDABLE = {
    "adafactor": "its second moments are rows and columns of whole matrices, which ZeRO's flat shards no longer have",
    "prodigy": "each rank would estimate the rate from its own shard alone",
    "dadapt_adam": "each rank would estimate the rate from its own shard alone",
}
"""Optimizers that ZeRO's shards would turn into others, each with the reason."""
LEAST_MULTIPLIER = 0.01


@dataclass
class ScheduleConfig:
    """The factor on base rates over the whole run, a function of the step alone."""

    name: str = "linear"
    """constant; linear; cosine (Loshchilov and Hutter, arXiv 1608.03983); polynomial; wsd: constant, then a decay over
    the last share of the run (Hu et al., arXiv 2404.06395); steps: a list of rates. Text encoders' own
    is unet by default: as the UNet's."""
    warmup_steps: int = 0
    """Steps over which the schedule is multiplied by a factor that rises evenly to 1."""
    final_factor: float = 0.0
    """The factor at the run's end, for linear, cosine, polynomial and wsd."""
    cycles: int = 1
    """How often cosine falls from 1 to the final factor; it restarts in between."""
    power: float = 2.0
    """Exponent of polynomial; 1 is linear."""
    decay_share: float = 0.2
    """Share of the run, at its end, over which wsd decays."""
    decay: str = "sqrt"
    """Shape of wsd's decay: linear, or sqrt, 1 - sqrt(share done) (Hägele et al., arXiv 2405.18392)."""
    steps: str = ""
    """Rates with the steps that they last to, for instance "5e-6:12000, 5e-7:30000"; the last one holds to the end of
    the run, and its step may be left out. The UNet gets these rates (under text_encoder_schedule: the text encoder),
    all else is scaled in proportion."""

    def __post_init__(self) -> None:
        check_choice("schedule.name", self.name, (*SCHEDULES, AS_UNET))
        check_choice("schedule.decay", self.decay, DECAYS)
        check_not_negative("schedule.warmup_steps", self.warmup_steps)
        if not 0.0 <= self.final_factor <= 1.0:
            raise UserError(f"schedule.final_factor is {self.final_factor}: use a number from 0 to 1")
        if self.cycles < 1:
            raise UserError(f"schedule.cycles is {self.cycles}: use 1 or more")
        check_above_zero("schedule.power", self.power)
        if not 0.0 < self.decay_share <= 1.0:
            raise UserError(f"schedule.decay_share is {self.decay_share}: use a number above 0 and up to 1")
        if self.name == "steps":
            parse_steps(self.steps)
        self._check_used()

    def _check_used(self) -> None:
        taken = ("name",) if self.name == AS_UNET else ("name", "warmup_steps", *SCHEDULES[self.name])
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value != setting.default and setting.name not in taken:
                raise UserError(f"schedule.{setting.name} is {value!r} but {self.name} has none: leave it out")


def parse_steps(text: str) -> list[tuple[float, float]]:
    """A list of rates as (rate, the step before which it ends), in order; the last one ends at infinity.

    Raises:
        UserError: it is none, or its steps do not rise.
    """
    entries = [part.partition(":") for part in text.replace(" ", "").split(",")]
    try:
        rates = [float(rate) for rate, _, _ in entries]
        ends = [int(end) for _, _, end in entries[:-1]]
        last = int(entries[-1][2] or max(ends, default=0) + 1)
    except ValueError as error:
        raise UserError(f'schedule.steps is {text!r}: write it as in "5e-6:12000, 5e-7:30000"') from error
    if min(rates) <= 0.0 or not all(math.isfinite(rate) for rate in rates):
        raise UserError(f"schedule.steps is {text!r}: its rates must be above 0")
    if any(end <= before for before, end in zip([0, *ends], [*ends, last], strict=True)):
        raise UserError(f"schedule.steps is {text!r}: its steps must rise, from 1 or more")
    return list(zip(rates, [*ends, math.inf], strict=True))


@dataclass
class OptimConfig:
    """The optimizer, what it trains at which rates, and clipping."""

    name: str = "adamw8bit"
    """adamw, adamw8bit, paged_adamw, paged_adamw8bit, adopt, lion, lion8bit, prodigy, dadapt_adam, adafactor, sgd,
    sgd8bit, schedule_free_adamw, or your own as module:Class; see optimizers.md."""
    lr: float = 1e-5
    """Base learning rate of the UNet; for prodigy and dadapt_adam the factor on the rate that they estimate, 1."""
    text_encoder_lr: float = 1e-6
    """Base learning rate of the text encoder; 0 freezes it."""
    text_encoder_2_lr: float | None = None
    """Base learning rate of SDXL's second text encoder; null is text_encoder_lr."""
    block_factors: dict[str, float] = field(default_factory=dict)
    """Factors on the UNet's rate by block: IN00 and up, MID, OUT00 and up, TIME (embeddings of time and size), FINAL
    (last norm and convolution), or patterns of these as `OUT*`. The last that fits counts; 0 freezes."""
    train: list[str] = field(default_factory=lambda: ["*"])
    """Patterns over parameters' names (`unet.*.attentions.*`, `text_encoder.*`); what none fits is frozen."""
    betas: list[float] | None = None
    """Decay rates of the two moments; null is the optimizer's own, as for eps and weight_decay."""
    eps: float | None = None
    """Added to the root of the second moment (adopt: its lower bound); above 0."""
    weight_decay: float | None = None
    """Weight decay, which is decoupled (times the rate, beside the gradient) in all but sgd and sgd8bit."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer by name, for instance `{momentum: 0.95}` for sgd."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    text_encoder_schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(AS_UNET))
    """The schedule of text encoders."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", self.name):
            check_choice("optim.name", self.name, (*OPTIMIZERS, "module:Class"))
        check_above_zero("optim.lr", self.lr)
        check_not_negative("optim.text_encoder_lr", self.text_encoder_lr)
        check_not_negative("optim.text_encoder_2_lr", self.second_text_encoder_lr)
        for block, factor in self.block_factors.items():
            check_not_negative(f"optim.block_factors.{block}", factor)
        if not self.train:
            raise UserError('optim.train is empty: use ["*"] to train all that has a rate')
        check_above_zero("optim.max_grad_norm", self.max_grad_norm)
        check_choice("optim.schedule.name", self.schedule.name, tuple(SCHEDULES))
        self._check_arguments()
        if self.name in ESTIMATORS:
            self._check_one_rate()
        if self.name == "schedule_free_adamw" and {self.schedule.name, self.text_schedule.name} != {"constant"}:
            raise UserError(
                "optim.name is schedule_free_adamw, whose average of the weights takes the place of a decay: "
                "set optim.schedule.name=constant"
            )

    @property
    def second_text_encoder_lr(self) -> float:
        """Base learning rate of the second text encoder."""
        return self.text_encoder_lr if self.text_encoder_2_lr is None else self.text_encoder_2_lr

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of betas, eps and weight_decay that are given."""
        betas = None if self.betas is None else (self.betas[0], self.betas[1])
        values = {"betas": betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def text_schedule(self) -> ScheduleConfig:
        """The schedule that text encoders follow."""
        return self.schedule if self.text_encoder_schedule.name == AS_UNET else self.text_encoder_schedule

    def _check_arguments(self) -> None:
        if self.betas is not None and (len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas)):
            raise UserError(f"optim.betas is {list(self.betas)}: give two numbers in [0, 1)")
        if self.eps is not None:
            check_above_zero("optim.eps", self.eps)  # at 0, a gradient of 0 is divided by 0
        if self.weight_decay is not None:
            check_not_negative("optim.weight_decay", self.weight_decay)
        takes = OPTIMIZERS.get(self.name, tuple(self.arguments))
        for name in self.arguments:
            if name not in takes:
                raise UserError(f"optim.{name} is given but {self.name} takes {', '.join(takes)} only: leave it null")
        for name in self.options:
            if name in ("params", "lr", *takes):
                raise UserError(f"optim.options.{name} is given: it has a place of its own, optim.{name}")

    def _check_one_rate(self) -> None:
        rates = {self.lr, self.text_encoder_lr, self.second_text_encoder_lr} - {0.0}
        factors = set(self.block_factors.values()) - {0.0, 1.0}
        if len(rates) > 1 or factors or self.text_schedule is not self.schedule:
            raise UserError(
                f"optim.name is {self.name}, which estimates one rate for all that trains: give the text encoders "
                "optim.lr or 0, blocks a factor of 1 or 0, and all the same schedule"
            )
        if self.lr < LEAST_MULTIPLIER:
            raise UserError(
                f"optim.lr is {self.lr} but {self.name} multiplies the rate that it estimates by it: use 1.0"
            )


def state_kind(config: OptimConfig) -> str:
    """What the optimizer's state means; between optimizers of one kind it can be carried over."""
    return STATE_KINDS.get(config.name, config.name)


@dataclass
class EmaConfig:
    """An exponential moving average of the weights, which samples, validation and exports then use."""

    decay: float = 0.0
    """Share of the old average that an update keeps; 0 keeps no average."""
    warmup: bool = True
    """Whether the decay begins low, at most (1 + n) / (10 + n) after n steps, so that the start is forgotten."""
    every_steps: int = 1
    """Steps between updates, each of which decays as much as that many steps would."""
    device: str = "cpu"
    """cpu keeps the average in main memory; model keeps it beside the weights, faster, for 4 bytes a parameter."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"ema.decay is {self.decay}: use a number from 0 to below 1")
        if self.every_steps < 1:
            raise UserError(f"ema.every_steps is {self.every_steps}: use 1 or more")
        check_choice("ema.device", self.device, ("cpu", "model"))
