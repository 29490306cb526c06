"""What a recipe says about exports, and what an export may be."""

from dataclasses import dataclass

from finetune.checks import check_choice, check_not_negative
from finetune.errors import UserError

DTYPES = {"diffusers": "fp32", "single_file": "fp16", "webui": "fp16"}
"""The formats, each with the type that it is written in unless told: a folder may be finetuned further, while files are
sampled, for which half of the size is as good."""
TYPES = ("fp32", "fp16", "bf16")


@dataclass
class ExportConfig:
    """Exports during the run, made beside it from the checkpoint that has just been saved; the run's end is always
    exported as a diffusers folder."""

    every_steps: int = 0
    """Optimizer steps between exports, a multiple of checkpoint.every_steps; 0 for none."""
    format: str = "webui"
    """diffusers (a folder), single_file (one `.safetensors` file in the original layout) or webui (the same with the
    `.yaml` file that webui needs)."""
    dtype: str | None = None
    """fp32, fp16 or bf16; None is fp32 for folders and fp16 for files."""
    keep: int = 3
    """How many of the newest exports are kept; 0 keeps all."""

    def __post_init__(self) -> None:
        check_not_negative("export.every_steps", self.every_steps)
        check_choice("export.format", self.format, tuple(DTYPES))
        if self.dtype is not None:
            check_choice("export.dtype", self.dtype, TYPES)
        check_not_negative("export.keep", self.keep)


def check_cadence(export: ExportConfig, checkpoint_every_steps: int) -> None:
    """Raise UserError unless there is a checkpoint wherever one is to be exported."""
    if export.every_steps % checkpoint_every_steps:
        raise UserError(
            f"export.every_steps is {export.every_steps} and checkpoint.every_steps {checkpoint_every_steps}: "
            "the first must be a multiple of the second"
        )


def export_name(run_name: str, step: int, form: str) -> str:
    """What a run's export of a step is called in its export folder unless told; names sort by step."""
    return f"{run_name}-step-{step:08d}" + ("" if form == "diffusers" else ".safetensors")
