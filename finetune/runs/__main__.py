"""`python -m finetune.runs`: plan a run, look at one, compare its checkpoints, and export what it has trained."""

import typer

from finetune.entry import enter
from finetune.runs.diff import diff
from finetune.runs.export import export
from finetune.runs.ledger import ledger
from finetune.runs.plan import plan
from finetune.runs.sample.command import sample
from finetune.runs.status import status
from finetune.runs.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.command()(plan)
app.command()(status)
app.command()(ledger)
app.command()(verify)
app.command()(diff)
app.command()(export)
app.command()(sample)

if __name__ == "__main__":
    enter(app)
