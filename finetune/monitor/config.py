"""What a recipe says about how the run is watched."""

from dataclasses import dataclass, field

from finetune.checks import check_choice
from finetune.errors import UserError
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.samples.config import SamplesConfig

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
    system: bool = False
    """Send what wandb measures of the machine every 15 seconds as well: GPUs, CPU, memory, disk, network."""

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
class MonitorConfig:
    """Metrics, trackers, status and samples."""

    flush_every_steps: int = 10
    """Steps between two lines of intervals.jsonl, with which trackers are sent the figures of the steps in between."""
    heartbeat_s: float = 5.0
    """Seconds between rewrites of status.json."""
    tensorboard: bool = True
    """Write TensorBoard's event files."""
    serve_port: int | None = None
    """Serve the run's page, /healthz and /metrics on this port of 127.0.0.1 while it goes on; None serves nothing."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)

    def __post_init__(self) -> None:
        if self.flush_every_steps < 1 or self.heartbeat_s <= 0:
            raise UserError("monitor.flush_every_steps must be at least 1 and monitor.heartbeat_s above 0")
        if self.serve_port is not None and not 1 <= self.serve_port <= 65535:
            raise UserError(f"monitor.serve_port is {self.serve_port}: use a port from 1 to 65535, or null for no page")
