"""What several parts of a recipe's schema check alike."""

import math
from collections.abc import Sequence

from finetune.errors import UserError


def check_share(name: str, value: float) -> None:
    """Raise UserError unless `value` lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}: use a number from 0 to 1")


def check_finite(name: str, value: float) -> None:
    """Raise UserError if `value` is infinite or no number."""
    if not math.isfinite(value):
        raise UserError(f"{name} is {value}: use a finite number")


def check_above_zero(name: str, value: float) -> None:
    """Raise UserError unless `value` is finite and above 0."""
    check_finite(name, value)
    if value <= 0.0:
        raise UserError(f"{name} is {value}: use a number above 0")


def check_not_negative(name: str, value: float) -> None:
    """Raise UserError unless `value` is finite and 0 or more."""
    check_finite(name, value)
    if value < 0.0:
        raise UserError(f"{name} is {value}: use 0 or more")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}: use one of {', '.join(choices)}")
