"""Whether a run's checkpoints are as they were written."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from finetune.checkpoint.manifest import read_manifest
from finetune.checkpoint.names import MANIFEST, finished
from finetune.errors import UserError
from finetune.runs.checkpoints import CHECKPOINTS
from finetune.runs.folder import AsJson, RunFolder

MIB = 2**20


def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Compare all checkpoints of a run with the sizes and hashes that they were written with. Exit code: 0 all are
    whole, 1 one is damaged. What was set aside as damaged, or never finished, is listed and does not count."""
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{run} is not a run's folder with checkpoints (it has no {CHECKPOINTS}): give runs/NAME")
    found = list(_looked_at(folder))
    others = sorted(path.name for path in folder.glob("step-*") if path.is_dir() and path not in finished(folder))
    if as_json:
        print(json.dumps({"checkpoints": found, "set_aside": others}, indent=1))
    else:
        Console().print(_table(run, found))
        for name in others:
            Console().print(f"{name} is {'unfinished' if name.endswith('.tmp') else 'set aside'}")
    raise typer.Exit(int(any(checkpoint["damage"] for checkpoint in found)))


def _looked_at(folder: Path) -> Iterator[dict[str, Any]]:
    """What is said of each checkpoint, oldest first; those that the run removes meanwhile are left out."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        for path in finished(folder):
            facts = _facts(path, progress)
            if path.exists():
                yield facts


def _facts(path: Path, progress: Progress) -> dict[str, Any]:
    try:
        checkpoint = read_manifest(path)
    except (OSError, ValueError, KeyError) as error:
        return {"name": path.name, "ranks": None, "bytes": None, "damage": f"{MANIFEST} cannot be read: {error}"}
    size = sum(file["size"] for file in checkpoint.files.values())
    task = progress.add_task(path.name, total=size)
    damage = None
    for name, file in checkpoint.files.items():
        damage = damage or replace(checkpoint, files={name: file}).damage()
        progress.advance(task, file["size"])
    progress.remove_task(task)
    return {"name": path.name, "ranks": checkpoint.world, "bytes": size, "damage": damage}


def _table(run: Path, found: list[dict[str, Any]]) -> Table:
    table = Table("checkpoint", "ranks", "MiB", "", title=f"{run}", title_justify="left")
    for facts in found:
        size = "" if facts["bytes"] is None else f"{facts['bytes'] / MIB:,.1f}"
        ranks = "" if facts["ranks"] is None else str(facts["ranks"])
        table.add_row(facts["name"], ranks, size, facts["damage"] or "whole")
    return table
