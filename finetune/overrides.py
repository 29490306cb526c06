"""A part of the recipe with some of its settings changed, for one phase or one source."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.errors import UserError

T = TypeVar("T")


def overridden(base: T, changes: Mapping[str, Any], at: str, of: str) -> T:
    """A dataclass with what `changes` names, checked as if it had been written so.

    Args:
        at: where the changes stand in the recipe; empty for its root.
        of: the part that they change.

    Raises:
        UserError: there is no such setting, or a value is not allowed.
    """
    try:
        changed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), dict(changes)))
    except OmegaConfBaseException as error:
        key, said = ".".join(filter(None, (at, error.full_key))), str(error).splitlines()[0]
        told = ill_typed(key, said) or f"{key}: {said}; it takes the settings of {of}"
        raise UserError(told) from error
    except UserError as error:
        raise UserError(f"{at}: {error}" if at else str(error)) from error
    assert isinstance(changed, type(base))
    return changed


def ill_typed(key: str, said: str) -> str | None:
    """What a user is told of a value that is not of its setting's type; None where `said`, by OmegaConf, is of
    something else."""
    given = re.search(r"Value '(.*?)'.*(?:could not be converted to|is not a valid) (\w+)", said)
    return given and f"{key} is {given[1]!r}: give a value of type {given[2].lower()}"
