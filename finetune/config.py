"""The whole recipe as one typed schema, and every check that spans two of its parts."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.export_config import ExportConfig, check_cadence
from finetune.checks import check_choice
from finetune.data.config import DataConfig
from finetune.data.prompts.config import CaptionsConfig
from finetune.data.prompts.prompter import Policy, Prompter
from finetune.data.shapes import PlanSettings
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.health.config import HealthConfig
from finetune.model.config import ModelConfig
from finetune.monitor.config import MonitorConfig
from finetune.monitor.samples.config import SamplesConfig
from finetune.optim.config import UNSHARDABLE, EmaConfig, OptimConfig
from finetune.overrides import overridden
from finetune.phases import Phase, PhaseConfig, shapes, unfold
from finetune.redact import blacked_out, redacted_tree
from finetune.strategy import DIVIDED, StrategyConfig

RESUME = ("auto", "never")


@dataclass
class RunConfig:
    """The run's name, place and seed."""

    name: str = MISSING
    """Name of the run and of its folder; the same name goes on with the same run."""
    folder: str = "runs"
    """Where runs' folders are made."""
    seed: int = 0
    """Every random choice of the run is a function of this."""
    accept_changes: bool = False
    """Go on from a checkpoint though the recipe has changed since in what it trains; see operating.md."""
    max_crashes_at_step: int = 3
    """A run that has died so many times in the same step is not started again; 0 always starts it."""

    def __post_init__(self) -> None:
        if self.max_crashes_at_step < 0:
            raise UserError(
                f"run.max_crashes_at_step is {self.max_crashes_at_step}: use a number above 0, or 0 for no limit"
            )
        if self.name == MISSING:
            return
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise UserError(f"run.name is {self.name!r}: use letters, digits, '-', '_' and '.' only")


@dataclass
class BatchConfig:
    """Samples per forward pass and per optimizer step."""

    micro_batch: int = 8
    """Samples that one rank trains at a time."""
    global_batch: int = 256
    """Samples per optimizer step, over all ranks; gradient accumulation follows from the number of ranks."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1 or self.global_batch < 1 or self.global_batch % self.micro_batch:
            raise UserError(
                f"train.global_batch is {self.global_batch} and train.micro_batch {self.micro_batch}: "
                "the first must be a multiple of the second"
            )


@dataclass
class Config:
    """A recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    train: BatchConfig = field(default_factory=BatchConfig)
    phases: list[PhaseConfig] = field(default_factory=list)
    """What the run consists of, in order: where each phase ends, and what it changes."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    resume: str = "auto"
    """auto goes on from the run's last checkpoint where there is one; with never, a run that has one is an error."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise UserError("phases is empty: give the run a length, for instance phases=[{until: 10 epochs}]")
        check_choice("resume", self.resume, RESUME)

    @property
    def run_folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.folder).expanduser() / self.run.name


def typed(composed: DictConfig) -> Config:
    """The recipe as dataclasses, each of which has checked its own values.

    Raises:
        UserError: a value that must be given is missing, or one is not allowed.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"{missing[0]} is not set: give it in the recipe or as {missing[0]}=… on the command line")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def phases(config: Config) -> list[Phase]:
    """The phases of a recipe, each with all that holds in it. Raises UserError where one changes what it must not."""
    return unfold(config.phases, config.optim, config.data.buckets, config.train.micro_batch)


def plan_settings(config: Config) -> PlanSettings:
    """What the plan is a function of beside the data."""
    return PlanSettings(shapes(phases(config)), config.train.global_batch, config.run.seed)


def check(config: Config, world: int) -> None:
    """Every check that spans two parts of the recipe or the recipe and the number of processes.

    Raises:
        UserError: they do not fit together.
    """
    if world > 1 and config.strategy.name == "single":
        raise UserError(
            f"strategy=single trains in one process but {world} were started: use strategy=ddp, where every GPU holds "
            "all, or strategy=zero2"
        )
    check_cadence(config.export, config.checkpoint.every_steps)
    _check_watchdog(config)
    _check_compiled(config)
    policies(config)
    unfolded = phases(config)
    for phase in unfolded:
        _check_shared(config.train.global_batch, phase.micro_batch, world)
        _check_sharded(phase.optim.name, config.strategy.name)
    _check_samples(config.monitor.samples, max(phase.buckets.max_side_px for phase in unfolded), config.diffusion)


def _check_watchdog(config: Config) -> None:
    """What waits for data has to say so before it counts as a rank that has stopped, and that before all give up."""
    stall_s, told_s, given_up_s = config.health.stall_s, config.data.cache.alert_after_s, config.strategy.timeout_s
    if stall_s and not told_s < stall_s < given_up_s:
        raise UserError(
            f"health.stall_s is {stall_s:g}: use 0 to watch no rank, or a number above data.cache.alert_after_s "
            f"({told_s:g}) and below strategy.timeout_s ({given_up_s})"
        )


def _check_compiled(config: Config) -> None:
    """What fetches a block's weights when it is called cannot be compiled with it."""
    if config.model.compile and config.strategy.name == "zero3":
        raise UserError("model.compile=true cannot be used under strategy=zero3: use strategy=zero2, or leave it out")


def _check_samples(samples: SamplesConfig, longest_px: int, diffusion: DiffusionConfig) -> None:
    if not samples.draws:
        return
    for width, height in samples.sizes_px:
        if max(width, height) > 2 * longest_px:
            raise UserError(
                f"monitor.samples.sizes_px asks for {width}×{height} px, more than twice the longest side that is "
                f"trained ({longest_px} px): lower it"
            )
    if samples.steps > diffusion.timesteps:
        raise UserError(
            f"monitor.samples.steps is {samples.steps}, more than the {diffusion.timesteps} timesteps there are "
            "(diffusion.timesteps): lower it"
        )
    samples.all_prompts()  # whether the file can be read


def _check_shared(global_batch: int, micro_batch: int, world: int) -> None:
    if micro_batch < 1 or global_batch % micro_batch:
        raise UserError(
            f"a phase's micro_batch is {micro_batch}: use a number above 0 that divides train.global_batch "
            f"({global_batch})"
        )
    per_step = global_batch // micro_batch
    if per_step % world:
        fitting = ", ".join(str(n) for n in range(1, per_step + 1) if per_step % n == 0)
        raise UserError(
            f"a global batch of {global_batch} in micro-batches of {micro_batch} cannot be shared by {world} "
            f"processes: start one of {fitting}"
        )


def _check_sharded(optimizer: str, strategy: str) -> None:
    if strategy in DIVIDED and optimizer in UNSHARDABLE:
        raise UserError(
            f"optim.name={optimizer} cannot train under strategy={strategy}: {UNSHARDABLE[optimizer]}; use "
            "strategy=ddp or another optimizer"
        )


def policies(config: Config) -> list[Policy]:
    """What each source of the data asks for, in order; what its captions leave open is the recipe's.

    Raises:
        UserError: a source's captions have an unknown setting or a value that is not allowed, or a list of tags that
            they name is missing or broken.
    """
    found = []
    for name, source in config.data.all_sources.items():
        captions = overridden(config.captions, source.captions, f"data.sources.{name}.captions", "captions")
        found.append(Policy(Prompter(captions, config.run.seed), source.loss_weight))
    return found


def defaults() -> dict[str, Any]:
    """Every setting of the schema as it is by default, as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def resolved(config: Config) -> dict[str, Any]:
    """The recipe as plain values with secrets blacked out, fit to be saved and shown."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(plain, dict)
    alerts = plain["monitor"]["alerts"]
    alerts["to"] = ["***" for _ in alerts["to"]]
    shown = redacted_tree(blacked_out(plain))
    assert isinstance(shown, dict)
    return shown
