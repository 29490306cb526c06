"""What a recipe says about checkpoints."""

from dataclasses import dataclass

from finetune.errors import UserError
from finetune.redact import redacted


@dataclass
class CheckpointConfig:
    """When to save, what to keep, and where copies go. What any of the `keep` settings asks for is kept."""

    every_steps: int = 500
    """Optimizer steps between checkpoints; the run's end is always saved."""
    keep: int = 3
    """How many of the newest are kept."""
    keep_every_steps: int = 0
    """Checkpoints whose step is a multiple of this are kept for good; 0 keeps none for that."""
    keep_phases: bool = True
    """Whether what is saved where a phase ends is kept for good."""
    keep_best: int = 1
    """How many of those with the lowest validation loss are kept, where the run validates."""
    upload: str | None = None
    """URL (s3://…, or anything else that fsspec can write) or path below which every checkpoint is copied to
    NAME/checkpoints; a run without a whole checkpoint of its own goes on from there. None copies nothing."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise UserError("checkpoint.every_steps and checkpoint.keep must be at least 1")
        if self.keep_best < 0:
            raise UserError(f"checkpoint.keep_best is {self.keep_best}: use 0 or more")
        if self.keep_every_steps < 0 or self.keep_every_steps % self.every_steps:
            raise UserError(
                f"checkpoint.keep_every_steps is {self.keep_every_steps}: use 0 or a multiple of "
                f"checkpoint.every_steps ({self.every_steps})"
            )
        if self.upload is not None and (not self.upload or self.upload.startswith(("http://", "https://"))):
            raise UserError(
                f"checkpoint.upload is {redacted(self.upload)!r}: give a URL that can be written, as s3://BUCKET/runs, "
                "or a path"
            )
