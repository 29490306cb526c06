"""How a run is, also after its death."""

import json
import time
from datetime import timedelta
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.checkpoint.names import finished
from finetune.monitor.files import read_lines
from finetune.monitor.status import health, read_status
from finetune.runs.folder import AsJson, RunFolder

EXIT_CODES = {"healthy": 0, "finished": 0, "stale": 3, "failed": 4, "stopped": 5, "paused": 6, "preempted": 7}


def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Show how a run is, also after its death. Exit code: 0 healthy or finished, 3 stale, 4 failed, 5 stopped, 6 paused
    while data cannot be read, 7 preempted (asked to stop, and saved)."""
    facts = read_status(run)
    facts["health"] = health(facts, time.time())
    facts["checkpoints"] = [path.name for path in finished(run / "checkpoints")]
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        Console().print(_status_table(run, facts))
    raise typer.Exit(EXIT_CODES[facts["health"]])


def _status_table(run: Path, facts: dict[str, object]) -> Table:
    lines = read_lines(run / "metrics.jsonl")
    last = lines[-1] if lines else {}
    table = Table(title=f"{facts['name']}: {facts['health']}", show_header=False, title_justify="left")
    table.add_row("step", f"{facts['step']:,} of {facts['total_steps']:,}")
    for name, form in (("epoch", ".3f"), ("loss", ".5f"), ("grad_norm", ".4f"), ("images_per_s", ".1f")):
        if last.get(name) is not None:  # null where it was not finite
            table.add_row(name, format(last[name], form))
    if "eta_s" in facts:
        table.add_row("ETA", str(timedelta(seconds=round(float(str(facts["eta_s"]))))))
    if "outage" in facts:
        outage = facts["outage"]
        table.add_row("waits for", f"{outage['what']}: {outage['reason']}")  # type: ignore[index]
    if "reason" in facts:
        table.add_row("reason", escape(str(facts["reason"])))
    table.add_row("heartbeat", f"{time.time() - float(str(facts['heartbeat'])):.0f} s ago")
    table.add_row("checkpoints", ", ".join(facts["checkpoints"]) or "none yet")  # type: ignore[arg-type]
    table.add_row("machine", f"{facts['host']}, pid {facts['pid']}")
    return table
