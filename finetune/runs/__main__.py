"""`python -m finetune.runs`: plan a run, look at one, compare its checkpoints, and export what it has trained."""

import typer

from finetune.commands import with_later
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
"""Of each command the function in this folder, and what the list of commands says of it."""

app = typer.Typer(
    cls=with_later("finetune.runs", COMMANDS),
    callback=lambda: None,
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    pretty_exceptions_enable=False,
)

if __name__ == "__main__":
    enter(app)
