"""The recipe as it is at a step: with what has been set while the run went on."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import Config, check
from finetune.data.journal import Journal, Setting
from finetune.errors import UserError
from finetune.overrides import overridden
from finetune.phases import RATES, rate_of

WATCHING = (
    "checkpoint.every_steps",
    "monitor.flush_every_steps",
    "monitor.samples.*",
    "monitor.validation.*",
)
SETTABLE = (*(f"optim.{rate}" for rate in RATES), *WATCHING)
"""Patterns of the settings that may change while a run goes on."""


class Live:
    """The recipe as it is at a step, but for rates, which belong to phases (`Phases.at`)."""

    def __init__(self, config: Config) -> None:
        """Nothing has been set yet."""
        self._recipe = self._now = config
        self._changes: dict[str, Any] = {}

    def at(self, settings: Sequence[Setting], step: int) -> Config:
        """The recipe once `step` steps are done. Made anew only where something else holds than when it was asked for
        last, so that it may be asked for in every step."""
        held = {s.key: s.value for s in settings if s.step <= step and not rate_of(s)}
        changes = {key: value for key, value in held.items() if value is not None}
        if changes != self._changes:
            self._now = _with(self._recipe, changes) if changes else self._recipe
            self._changes = changes
        return self._now


def parsed(config: Config, assignment: str, world: int) -> tuple[str, Any]:
    """The key and the plain value of KEY=VALUE, checked as if it stood in the recipe.

    Raises:
        UserError: it is no assignment, its key cannot be set while a run goes on, or its value is not allowed.
    """
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals or not text:
        raise UserError(f"{assignment!r} sets nothing: write KEY=VALUE, for instance optim.lr=2e-6")
    if not any(fnmatchcase(key, pattern) for pattern in SETTABLE):
        raise UserError(f"{key} cannot be set while a run goes on, only {', '.join(SETTABLE)}")
    try:
        given = OmegaConf.select(OmegaConf.from_dotlist([f"{key}={text}"]), key)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:  # the last of what loops
        raise UserError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from error
    changed = _with(config, {key: given})
    check(changed, world)
    value = OmegaConf.select(OmegaConf.structured(changed), key)
    if value is None:
        raise UserError(f"{key} is null: give it a value")
    return key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def recalled(
    journal: Journal, kept: Sequence[Mapping[str, Any]], recipe_changes: Collection[str], step: int
) -> tuple[Journal, list[Setting]]:
    """A journal with what was set after it was saved, and what is to be kept beside that: what the recipe says of a
    setting that has been changed in it since holds again.

    Args:
        journal: of the checkpoint that the run goes on from.
        kept: all that was ever set, in that order: `step`, `key`, `value`.
        recipe_changes: dotted keys in which the recipe differs from that of the start before.
        step: where the run goes on.
    """
    for one in kept:
        journal = journal.with_setting(Setting(**one))
    changed = {s.key for s in journal.settings if any(_within(name, s.key) for name in recipe_changes)}
    given_back = [Setting(step, key, None) for key in sorted(changed)]
    for setting in given_back:
        journal = journal.with_setting(setting)
    return journal, given_back


def _within(name: str, key: str) -> bool:
    return name == key or name.startswith((f"{key}.", f"{key}["))


def _with(config: Config, changes: dict[str, Any]) -> Config:
    nested = OmegaConf.create({})
    for key, value in changes.items():
        OmegaConf.update(nested, key, value)
    plain = OmegaConf.to_container(nested)
    assert isinstance(plain, dict)
    return overridden(config, {str(key): value for key, value in plain.items()}, "", "a recipe")
