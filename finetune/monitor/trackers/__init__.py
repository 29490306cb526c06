"""TensorBoard and wandb: extra eyes, which must never touch training."""

from finetune.monitor.trackers.trackers import Trackers, open_trackers

__all__ = ["Trackers", "open_trackers"]
