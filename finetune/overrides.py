"""A part of the recipe with some of its settings changed, for one phase or one source."""

from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.errors import UserError

T = TypeVar("T")


def overridden(base: T, changes: Mapping[str, Any], at: str, of: str) -> T:
    """A dataclass with what `changes` names, checked as if it had been written so.

    Args:
        at: where the changes stand in the recipe.
        of: the part that they change.

    Raises:
        UserError: there is no such setting, or a value is not allowed.
    """
    try:
        changed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), dict(changes)))
    except OmegaConfBaseException as error:
        key = f"{at}.{error.full_key}" if error.full_key else at
        raise UserError(f"{key}: {str(error).splitlines()[0]}; it takes the settings of {of}") from error
    except UserError as error:
        raise UserError(f"{at}: {error}") from error
    assert isinstance(changed, type(base))
    return changed
