"""What several parts of a recipe's schema check alike."""

from collections.abc import Sequence

from finetune.errors import UserError


def check_share(name: str, value: float) -> None:
    """Raise UserError unless `value` lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}: use a number from 0 to 1")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}: use one of {', '.join(choices)}")
