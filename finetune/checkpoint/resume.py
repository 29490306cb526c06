"""Going on from a checkpoint: what must be as it was, and what is saved to be able to tell."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from finetune.checkpoint.store import Checkpoint
from finetune.errors import UserError

PACKAGES = ("torch", "deepspeed", "accelerate", "diffusers", "transformers", "bitsandbytes", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of the packages on which results depend, for the manifest."""
    return {name: version(name) for name in PACKAGES}


def check_identity(checkpoint: Checkpoint, current: Mapping[str, Any]) -> None:
    """Raise UserError naming the first thing that has changed since and would change the order of the data."""
    saved = checkpoint.meta["identity"]
    for name, value in current.items():
        if saved.get(name) != value:
            raise UserError(
                f"{name} was {saved.get(name)!r} when {checkpoint.folder} was saved and is {value!r} now, which would "
                "change the order of the data: put it back, or start another run with another run.name"
            )
