"""What a recipe says about who is told what, and when."""

from dataclasses import dataclass, field

from finetune.checks import check_choice, check_not_negative
from finetune.errors import UserError

KINDS = (
    "started",
    "resumed",
    "phase",
    "skipped",
    "rolled back",
    "quarantined",
    "plateau",
    "stalled rank",
    "slow rank",
    "data outage",
    "data is back",
    "data change passed over",
    "disk nearly full",
    "checkpoint failed",
    "damaged checkpoint",
    "upload failed",
    "export failed",
    "tracker failed",
    "no heartbeat",
    "heartbeat is back",
    "finished",
    "preempted",
    "stopped",
    "failed",
)
"""What alerts can be about."""


@dataclass
class AlertsConfig:
    """Who is told when something happens to the run; docs/alerts.md has the kinds of alerts and how addresses are
    written."""

    to: list[str] = field(default_factory=list)
    """Apprise URLs such as ntfys://ntfy.sh/TOPIC, or webhooks of Discord and Slack. They are secrets: give them as
    ${oc.env:NAME}, a variable with none or several between which there is white space."""
    mute: list[str] = field(default_factory=list)
    """Kinds of alerts that are not sent."""
    again_after_s: float = 21600.0
    """What goes on happening is told again after so many seconds, with how often it came meanwhile."""
    per_hour: int = 10
    """At most so many alerts are sent in any hour, and as many severe ones; what is held back is summed up in one."""
    disk_free_gib: float = 5.0
    """Less room than this, or than the next checkpoint takes, where the run or its checkpoints lie is told."""
    plateau_steps: int = 0
    """A loss that has not improved over so many steps is told; 0 looks for none."""

    def __post_init__(self) -> None:
        if not isinstance(self.to, list) or not all(isinstance(one, str) for one in self.to):
            raise UserError("monitor.alerts.to is no list of addresses: write [${oc.env:NAME}]")
        for kind in self.mute:
            check_choice("monitor.alerts.mute", kind, KINDS)
        check_not_negative("monitor.alerts.again_after_s", self.again_after_s)
        check_not_negative("monitor.alerts.disk_free_gib", self.disk_free_gib)
        if self.per_hour < 1:
            raise UserError(f"monitor.alerts.per_hour is {self.per_hour}: use 1 or more")
        if self.plateau_steps and self.plateau_steps < 20:
            raise UserError(f"monitor.alerts.plateau_steps is {self.plateau_steps}: use 0, or 20 and more")
