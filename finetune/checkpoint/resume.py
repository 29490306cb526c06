"""Going on from a checkpoint: what must be as it was, and what is saved to be able to tell."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from finetune.checkpoint.store import Checkpoint
from finetune.data.config import DataConfig
from finetune.data.plan import PLAN_VERSION
from finetune.errors import UserError

PACKAGES = ("torch", "deepspeed", "accelerate", "diffusers", "transformers", "bitsandbytes", "numpy")


def plan_identity(data: DataConfig, *, index: str, seed: int, micro_batch: int, global_batch: int) -> dict[str, Any]:
    """All that the plan is a function of, by the settings' names; a run can only go on while it is unchanged.

    Args:
        index: the index's fingerprint.
    """
    return {
        "plan_version": PLAN_VERSION,
        "data.shards (fingerprint of the index)": index,
        "run.seed": seed,
        "train.micro_batch": micro_batch,
        "train.global_batch": global_batch,
        "data.window_shards": data.window_shards,
        "data.buckets": asdict(data.buckets),
    }


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
