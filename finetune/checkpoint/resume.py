"""Going on from a checkpoint: what must be as it was, whatever the user accepts, and what is saved to tell."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from finetune.checkpoint.store import Checkpoint
from finetune.errors import UserError

NOTES = {"identity", "journal", "config", "model", "health", "updates", "looked"}
"""What a run goes on from beside the state of its ranks."""
PACKAGES = ("longhaul", "torch", "deepspeed", "accelerate", "diffusers", "transformers", "bitsandbytes", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of the packages on which results depend, for the manifest."""
    return {name: version(name) for name in PACKAGES}


def parameter_shapes(module: nn.Module) -> dict[str, list[int]]:
    """The shape of every parameter of a model, for the manifest."""
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


def check_model(checkpoint: Checkpoint, current: Mapping[str, list[int]]) -> None:
    """Raise UserError naming the first parameter that is not as it was when a checkpoint was saved.

    Args:
        current: the model's `parameter_shapes`; saved ones are in the checkpoint's `model`.
    """
    saved: Mapping[str, list[int]] = checkpoint.meta["model"]
    for name in {**saved, **current}:
        was, now = saved.get(name), current.get(name)
        if was != now:
            raise UserError(
                f"{name} {_shaped('was', was)} when {checkpoint.folder} was saved and {_shaped('is', now)} now, so "
                "model.path is of another model: put it back, or start another run with another run.name"
            )


def _shaped(verb: str, shape: list[int] | None) -> str:
    return f"{verb} not there" if shape is None else f"{verb} of shape {shape}"


def check_format(checkpoint: Checkpoint) -> None:
    """Raise UserError where a checkpoint lacks what is gone on from."""
    if missing := NOTES - checkpoint.meta.keys():
        raise UserError(
            f"{checkpoint.folder} was saved by an earlier version of Longhaul (it has no "
            f"{', '.join(sorted(missing))}): finish the run with that version, or start another run with another "
            "run.name"
        )


def check_identity(checkpoint: Checkpoint, current: Mapping[str, Any]) -> None:
    """Raise UserError naming the first thing that has changed since and would change the order of the data."""
    saved = checkpoint.meta["identity"]
    if saved["plan_version"] != current["plan_version"]:
        raise UserError(
            f"{checkpoint.folder} was saved by a version of Longhaul whose plan ({saved['plan_version']}) orders the "
            f"data otherwise than this one's ({current['plan_version']}): finish the run with the version that its "
            "manifest.json names, or start another run with another run.name"
        )
    for name, value in current.items():
        if saved.get(name) != value:
            raise UserError(
                f"{name} was {saved.get(name)!r} when {checkpoint.folder} was saved and is {value!r} now, which would "
                "change the order of the data: put it back, or start another run with another run.name"
            )
