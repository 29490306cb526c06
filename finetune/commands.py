"""Commands that are imported when they are called: most need torch, which takes seconds, and some do not."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class Later(TyperCommand):
    """A command that is imported when it is called."""

    def __init__(self, name: str, place: str, told: str) -> None:
        """Name the command.

        Args:
            place: its function, with the module.
            told: what the list of commands says of it.
        """
        super().__init__(name, callback=None, help=told)
        self._place = place

    def make_context(self, info_name: str | None, *args: Any, **extra: Any) -> Any:
        """Hand over to the command itself."""
        module, _, function = self._place.rpartition(".")
        itself = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
        itself.command(self.name)(getattr(import_module(module), function))
        return get_command(itself).make_context(info_name, *args, **extra)


def with_later(package: str, commands: Mapping[str, tuple[str, str]]) -> type[TyperGroup]:
    """A group that has these commands beside its own, none of them imported yet.

    Args:
        commands: of each the function, from the package on, and what the list of commands says of it.
    """

    class Commands(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            later = {name: Later(name, f"{package}.{place}", told) for name, (place, told) in commands.items()}
            super().__init__(**{**settings, "commands": {**settings["commands"], **later}})

    return Commands
