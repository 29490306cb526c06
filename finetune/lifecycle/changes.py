"""A run that goes on with another recipe: which settings may differ, and which only if the user says so."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.flat import Changes, differences, flattened, shown

SAFE = (
    # Where the run lies and how it is watched, saved and kept alive.
    "resume",
    "run.name",
    "run.folder",
    "run.accept_changes",
    "run.max_crashes_at_step",
    "checkpoint.*",
    "monitor.*",
    "health.*",
    "export.*",
    # How the same numbers are computed, but for rounding.
    "strategy.name",
    "strategy.timeout_s",
    "strategy.threads",
    "model.gradient_checkpointing",
    "model.vae_slicing",
    "model.attention",
    "model.compile",
    "model.compile_buckets",
    "ema.device",
    # Where the same data lies, which its fingerprint tells, and how it is read.
    "data.shards",
    "data.sources.*.path",
    "data.workers",
    "data.prefetch",
    "data.max_bad_share",
    "data.cache.*",
    # What says itself that the data shall change; it becomes part of the run's history.
    "data.exclude",
    "data.on_change",
    "data.sources.*.overlay.*",
)
"""Patterns of the settings that may change between two starts of a run."""


MOVABLE = ("data.latents",)
"""Settings that may name another place, but must not be set or left out where they were not."""


def is_safe(name: str) -> bool:
    """Whether a setting may change without a word."""
    return any(fnmatchcase(name, pattern) for pattern in SAFE)


def recipe_changes(saved: Mapping[str, Any], current: Mapping[str, Any], defaults: Mapping[str, Any]) -> Changes:
    """In what a recipe differs from one that was saved, perhaps by a version with fewer settings.

    Args:
        saved: nested settings, resolved.
        current: likewise.
        defaults: likewise; what `saved` lacks was as it is by default.
    """
    given, now, usual = flattened(saved), flattened(current), flattened(defaults)
    return differences({**{name: usual[name] for name in now.keys() & usual.keys()}, **given}, now)


def check_changes(changes: Changes, checkpoint: Path, *, accepted: bool) -> Changes:
    """Those of the changes that change what is trained.

    Args:
        checkpoint: where the recipe was saved.

    Raises:
        UserError: there are such, and the user does not accept them; with a list.
    """
    moved = {name for name in MOVABLE if None not in changes.get(name, (None,))}
    unsafe = {name: change for name, change in changes.items() if not is_safe(name) and name not in moved}
    if unsafe and not accepted:
        raise UserError(
            f"the recipe has changed in what it trains since {checkpoint} was saved: put it back, or go on like this "
            "with run.accept_changes=true",
            details=table(unsafe),
        )
    return unsafe


def table(changes: Changes) -> list[str]:
    """A line for each change: its name, what was, what is."""
    width = max(map(len, changes), default=0)
    return [f"{name:{width}}  was {shown(was)}, is {shown(now)}" for name, (was, now) in changes.items()]
