"""`python -m finetune.runs`: plan a run, look at one, compare its checkpoints, and export what it has trained."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from finetune.entry import enter

COMMANDS = {
    "plan": ("plan.plan", "Tell what a recipe will do with its data."),
    "status": ("status.status", "Show how a run is, also after its death."),
    "list": ("list.list_runs", "List the runs of a folder, one line each."),
    "serve": ("serve.serve", "Show runs to a browser, to probes and to Prometheus."),
    "watch": ("watch.watch", "Send alerts of a run to a phone, to a chat or by e-mail."),
    "ask": ("ask.ask", "Ask a run that goes on to save, draw samples, stop, or change a setting."),
    "ledger": ("ledger.ledger", "Tell what was drawn in each epoch, or when a sample was seen."),
    "verify": ("verify.verify", "Compare all checkpoints of a run with the hashes that they were written with."),
    "diff": ("diff.diff", "Compare two checkpoints, of one run or of two."),
    "sample": ("sample.command.sample", "Draw prompts over checkpoints, guidance, seeds or steps, as one page."),
    "export": ("export.export", "Write the model of a checkpoint."),
}
"""Of each command the function in this folder, and what the list of commands says of it. A command is imported when it
is called: most need torch, which takes seconds, and those that only look at a run do not."""


class Later(TyperCommand):
    """A command that is imported when it is called."""

    def make_context(self, info_name: str | None, *args: Any, **extra: Any) -> Any:
        """Hand over to the command itself."""
        module, _, function = COMMANDS[str(self.name)][0].rpartition(".")
        itself = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
        itself.command(self.name)(getattr(import_module(f"finetune.runs.{module}"), function))
        return get_command(itself).make_context(info_name, *args, **extra)


class Commands(TyperGroup):
    """All commands, none of them imported yet."""

    def __init__(self, **settings: Any) -> None:
        """Name the commands; the settings are typer's own."""
        settings["commands"] = {name: Later(name, callback=None, help=told) for name, (_, told) in COMMANDS.items()}
        super().__init__(**settings)


app = typer.Typer(
    cls=Commands,
    callback=lambda: None,
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    pretty_exceptions_enable=False,
)

if __name__ == "__main__":
    enter(app)
