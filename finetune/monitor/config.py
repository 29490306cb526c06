"""What a recipe says about how the run is watched."""

from dataclasses import dataclass, field

from finetune.checks import check_choice
from finetune.errors import UserError

MAX_SEED = 2**32
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "auto"
    """auto is online where a key is configured and offline elsewhere; online, offline; or disabled."""
    project: str = "longhaul"
    """Project to which the run belongs."""
    entity: str | None = None
    """Team or user; None takes the key's own."""

    def __post_init__(self) -> None:
        check_choice("monitor.wandb.mode", self.mode, WANDB_MODES)


@dataclass
class ValidationConfig:
    """The loss on samples that `data.held_out` keeps from training, at fixed timesteps and with fixed noise."""

    every_steps: int = 500
    """Optimizer steps between validations, beside one before the first step; 0 makes none."""
    samples: int = 512
    """At most so many of the samples held out, always the same ones."""

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.samples < 1:
            raise UserError(
                "monitor.validation.every_steps must not be negative and monitor.validation.samples above 0"
            )


@dataclass
class SamplesConfig:
    """Grids of fixed prompts and seeds."""

    every_steps: int = 500
    """Optimizer steps between grids, beside one before the first step; 0 draws none."""
    prompts: list[str] = field(default_factory=list)
    """One picture each; no prompts, no grids."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    seed: int = 0
    """Picture i starts from the noise of seed + i."""
    steps: int = 30
    """Sampling steps."""
    guidance: float = 7.0
    """Scale of classifier-free guidance."""
    guidance_rescale: float = 0.7
    """How far the guided prediction is scaled back to its own deviation (arXiv 2305.08891, section 3.4)."""
    width_px: int = 512
    """A multiple of 8."""
    height_px: int = 512
    """A multiple of 8."""
    batch: int = 4
    """Pictures sampled at a time."""

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.steps < 1 or self.batch < 1:
            raise UserError(
                "monitor.samples.every_steps must not be negative, monitor.samples.steps and batch at least 1"
            )
        if not 0 <= self.seed < MAX_SEED:
            raise UserError(f"monitor.samples.seed is {self.seed}: use a number from 0 to {MAX_SEED - 1}")
        if self.width_px < 8 or self.height_px < 8 or self.width_px % 8 or self.height_px % 8:
            raise UserError(
                f"monitor.samples asks for {self.width_px}×{self.height_px} px: use positive multiples of 8"
            )


@dataclass
class MonitorConfig:
    """Metrics, trackers, status and samples."""

    flush_every_steps: int = 10
    """Metrics are read from the device and written this often; nothing waits for the device in between."""
    heartbeat_s: float = 5.0
    """Seconds between rewrites of status.json."""
    tensorboard: bool = True
    """Write TensorBoard's event files."""
    serve_port: int | None = None
    """Serve the run's page, /healthz and /metrics on this port of 127.0.0.1 while it goes on; None serves nothing."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        if self.flush_every_steps < 1 or self.heartbeat_s <= 0:
            raise UserError("monitor.flush_every_steps must be at least 1 and monitor.heartbeat_s above 0")
        if self.serve_port is not None and not 1 <= self.serve_port <= 65535:
            raise UserError(f"monitor.serve_port is {self.serve_port}: use a port from 1 to 65535, or null for no page")
