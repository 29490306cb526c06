"""What a run has trained: when a sample was seen, with which prompt and crop."""

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.console import Console
from rich.table import Table

from finetune.data.journal import Journal
from finetune.data.plan import FILL, Draw
from finetune.errors import DataFault, UserError
from finetune.feed import KEPT
from finetune.monitor.ledger import read_ledger
from finetune.recipe_data import Opened, open_recipe
from finetune.runs.folder import AsJson, RunFolder, read_config, recipe_name


def ledger(
    run: RunFolder,
    sample: Annotated[str | None, typer.Option(help="Key of a sample, or id:N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what was drawn in each epoch; of one sample, when it was seen, with which prompt and crop."""
    if not (run / "ledger").is_dir():
        raise UserError(f"{run} is not a run's folder (it has no ledger): give runs/NAME")
    rows = list(sightings(run, sample)) if sample else epochs(read_ledger(run / "ledger"))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*(name.replace("_", " ") for name in (rows[0] if rows else ())))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table if rows else "not seen so far")


def epochs(table: pa.Table) -> list[dict[str, Any]]:
    """Of each epoch: draws, different samples among them, the fewest and most draws of one, those replaced, and those
    that filled up a bucket's last micro-batch."""
    found = []
    for epoch in sorted(set(table["epoch"].to_pylist())):
        of_epoch = table.filter(pc.equal(table["epoch"], epoch))
        regular = of_epoch.filter(pc.less(of_epoch["repeat"], FILL))
        planned = pc.coalesce(regular["substituted_for"], regular["sample"])
        counts = pc.value_counts(planned).field("counts").to_numpy()
        found.append(
            {
                "epoch": epoch,
                "draws": regular.num_rows,
                "samples": len(counts),
                "fewest": int(counts.min()),
                "most": int(counts.max()),
                "replaced": regular.num_rows - regular["substituted_for"].null_count,
                "filled_up": of_epoch.num_rows - regular.num_rows,
            }
        )
    return found


def sightings(run: Path, key: str) -> Iterator[dict[str, Any]]:
    """Every draw of the samples of a key, with what was made of it, and every draw in which another took its place.

    Raises:
        UserError: no sample has the key, or the data cannot be opened.
    """
    opened = open_run(run, "config.yaml")
    ids = opened.sources.find([key])
    if not ids:
        like = opened.sources.all[0].index.key(0)
        raise UserError(f"no sample of {run} has the key {key!r}: its keys are like {like!r}")
    table = read_ledger(run / "ledger")
    wanted = pa.array(ids, pa.uint64())
    is_wanted = pc.or_kleene(
        pc.is_in(table["sample"], value_set=wanted), pc.is_in(table["substituted_for"], value_set=wanted)
    )
    opened_with = cache(partial(open_run, run))
    for row in table.filter(is_wanted).to_pylist():
        # A run may go on with another recipe: a draw was made with that of its step.
        yield _sighting(opened_with(recipe_name(run, row["step"])), row, set(ids))


def open_run(run: Path, recipe: str) -> Opened:
    """A run's data as its journal has it, opened with one of its recipes. Raises UserError where something of it is
    missing."""
    path = run / "journal.json"
    if not path.is_file():
        raise UserError(f"{run} has no journal.json: start the run once with this version")
    journal = Journal.from_plain(json.loads(path.read_text(encoding="utf-8")))
    return open_recipe(read_config(run, recipe), run / KEPT, journal)


def _sighting(opened: Opened, row: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    trained, planned = row["sample"], row["substituted_for"]
    draw = Draw(trained if planned is None else planned, row["epoch"], row["repeat"])
    width, height = (int(side) for side in opened.plan.sizes[row["bucket"]])
    facts = {name: row[name] for name in ("step", "slot", "epoch", "repeat")} | {"bucket": f"{width}×{height}"}
    if trained not in ids:
        return {**facts, "crop": None, "mirrored": None, "prompt": None, "note": f"replaced by id:{trained}"}
    try:
        record = opened.sources.read(trained, draw.epoch, whole_shard=False)
        crop, mirrored = opened.preparer.crop(opened.preparer.info(record), record, row["bucket"], draw)
    except DataFault as fault:
        return {**facts, "crop": None, "mirrored": None, "prompt": None, "note": f"cannot be read now: {fault}"}
    prompt = opened.preparer.prompt(record, draw, row["step"] - 1)
    cut = f"{crop.scaled_width}×{crop.scaled_height} at ({crop.left}, {crop.top})"
    note = f"in place of id:{planned}" if planned is not None else "fills up" if draw.repeat >= FILL else None
    return {**facts, "crop": cut, "mirrored": mirrored, "prompt": prompt.text, "note": note}
