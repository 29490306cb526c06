"""What two checkpoints have in common and what not."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from finetune.checkpoint.manifest import read_manifest
from finetune.checkpoint.names import MANIFEST
from finetune.checkpoint.store import Checkpoint
from finetune.errors import UserError
from finetune.flat import flattened
from finetune.monitor.files import read_lines
from finetune.runs.checkpoints import find
from finetune.runs.folder import AsJson

One = Annotated[str, typer.Argument(help="RUN, RUN@STEP or a checkpoint's folder.", show_default=False)]
COMPARED = ("journal", "identity", "packages")
"""What else of a checkpoint's notes is compared key by key."""
SHOWN = 60
"""Letters of a value that the tables show."""


def diff(
    a: One,
    b: One,
    worst: Annotated[int, typer.Option(min=0, help="How many of the tensors that are farthest apart are shown.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints, of one run or of two: position, recipe, data, versions, optimizer, and every parameter.
    Exit code: 0 where the parameters are the same bit for bit, else 1."""
    facts = compared(chosen(a), chosen(b), worst)
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        for table in (_sides(facts), _changes(facts), _parts(facts), _worst(facts)):
            Console().print(table)
    raise typer.Exit(0 if facts["identical"] else 1)


def chosen(text: str) -> Checkpoint:
    """The checkpoint that RUN, RUN@STEP or a folder names. Raises UserError where there is none that can be read."""
    try:
        if (Path(text) / MANIFEST).is_file():
            return read_manifest(Path(text))
        run, at, step = text.rpartition("@")
        if at and step.isdecimal() and not Path(text).exists():
            return find(Path(run), int(step))
        return find(Path(text), None)
    except (ValueError, KeyError) as error:
        raise UserError(f"{text} has a {MANIFEST} that cannot be read ({error}): give another checkpoint") from error


def compared(a: Checkpoint, b: Checkpoint, worst: int) -> dict[str, Any]:
    """All differences of two checkpoints as plain values.

    Args:
        worst: how many of the tensors that are farthest apart are listed.

    Raises:
        UserError: one of them lacks values of a parameter.
    """
    with redirect_stdout(sys.stderr):  # where DeepSpeed says what it thinks of the machine as soon as it is imported
        from finetune.checkpoint.rows import SavedRows
        from finetune.runs.compare import parameters, unlike

    first, second = (SavedRows(*checkpoint.ranks) for checkpoint in (a, b))
    weights, averages = (parameters(first, second, worst, average=average) for average in (False, True))
    apart = unlike(first, second)
    same = weights["identical"] == weights["tensors"] and averages["identical"] == averages["tensors"]
    return {
        "identical": same and not any(apart.values()),
        "position": [_position(checkpoint) for checkpoint in (a, b)],
        "optimizer": [first.kind, second.kind],
        "recipe": changes(a.meta.get("config", {}), b.meta.get("config", {})),
        **{key: changes(a.meta.get(key, {}), b.meta.get(key, {})) for key in COMPARED},
        "parameters": weights,
        "averages": averages,
        **apart,
    }


def changes(a: Any, b: Any) -> dict[str, list[Any]]:
    """What differs between two trees of settings, by dotted name: [in a, in b], None where it is missing."""
    before, after = flattened(a), flattened(b)
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: [before.get(key), after.get(key)] for key in keys}


def _position(checkpoint: Checkpoint) -> dict[str, Any]:
    """How far a checkpoint's run had come; what it noted in single values counts too."""
    metrics = read_lines(checkpoint.folder.parent.parent / "metrics.jsonl")
    line: dict[str, Any] = next((line for line in metrics if line["step"] == checkpoint.step), {})
    global_batch = checkpoint.meta.get("identity", {}).get("train.global_batch")
    noted = {key: value for key, value in checkpoint.meta.items() if isinstance(value, str | int | float)}
    return {
        "folder": str(checkpoint.folder),
        "step": checkpoint.step,
        "samples": global_batch and checkpoint.step * global_batch,
        "epoch": line.get("epoch"),
        "ranks": checkpoint.world,
        **noted,
    }


def _sides(facts: dict[str, Any]) -> Table:
    a, b = facts["position"]
    table = Table("", "A", "B", title="position", title_justify="left")
    for key in a | b:
        table.add_row(key, *(_shown(side.get(key)) for side in (a, b)))
    table.add_row("optimizer", *map(_shown, facts["optimizer"]))
    return table


def _changes(facts: dict[str, Any]) -> Table | str:
    table = Table("", "A", "B", title="what differs", title_justify="left")
    for group in ("recipe", *COMPARED):
        for key, (before, after) in facts[group].items():
            table.add_row(f"{group} {key}".strip(), _shown(before), _shown(after))
    for key in ("only_in_a", "only_in_b", "of_other_sizes"):
        if facts[key]:
            table.add_row(f"parameters {key.replace('_', ' ')}", f"{len(facts[key])}: {next(iter(facts[key]))}, …", "")
    return table if table.row_count else "recipe, journal, data and versions are the same"


def _parts(facts: dict[str, Any]) -> Table:
    table = Table("", "elements", "relative L2", "max abs", title="parameters", title_justify="left")
    for key in ("parameters", "averages"):
        for part, row in facts[key]["parts"].items():
            name = part if key == "parameters" else f"{part}, average"
            table.add_row(name, f"{row['elements']:,}", *_figures(row))
    return table


def _worst(facts: dict[str, Any]) -> Table | str:
    found = facts["parameters"]
    title = f"{found['identical']:,} of {found['tensors']:,} tensors are identical"
    if not found["worst"]:
        return title
    table = Table("tensor", "relative L2", "max abs", title=f"{title}; farthest apart:", title_justify="left")
    for name, row in found["worst"].items():
        table.add_row(name, *_figures(row))
    return table


def _figures(row: dict[str, Any]) -> tuple[str, str]:
    if row["identical"]:
        return "identical", ""
    relative, largest = ("–" if row[key] is None else f"{row[key]:.3e}" for key in ("relative_l2", "max_abs"))
    return relative, largest


def _shown(value: Any) -> str:
    text = "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
