"""Which checkpoints are kept."""

import math
from collections.abc import Collection

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.manifest import Checkpoint


def retained(checkpoints: Collection[Checkpoint], config: CheckpointConfig) -> set[int]:
    """The steps of those checkpoints that any of the settings asks for, by what their manifests say.

    Of two with the same validation loss the earlier one is the better.
    """
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    judged = sorted((_loss(checkpoint), checkpoint.step) for checkpoint in checkpoints)
    kept = set(steps[-config.keep :])
    kept |= {step for loss, step in judged[: config.keep_best] if loss < math.inf}
    if config.keep_every_steps:
        kept |= {step for step in steps if step % config.keep_every_steps == 0}
    if config.keep_phases:
        kept |= {checkpoint.step for checkpoint in checkpoints if checkpoint.marks.phase_border}
    return kept


def _loss(checkpoint: Checkpoint) -> float:
    """A checkpoint's validation loss; infinite where it has none, or none that is finite."""
    loss = checkpoint.marks.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf
