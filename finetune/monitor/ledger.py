"""The ledger: which sample was trained at which step, a few bytes a row.

Prompt, crop, flip and timestep are not in it: the code that trained computes them again from what is.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.plan import MicroBatch

SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "slot": pa.int32(),
        "epoch": pa.int32(),
        "sample": pa.uint64(),
        "repeat": pa.int32(),
        "bucket": pa.uint16(),
        "substituted_for": pa.uint64(),
    }
)
"""`repeat` counts the draws of a sample within an epoch; `sample` is what was trained; where that is a substitute,
`substituted_for` is the sample that could not be used."""
PART = re.compile(r"steps-(\d+)-(\d+)\.parquet")


class Ledger:
    """Parquet parts of whole intervals of steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(exist_ok=True)
        self._pending: list[dict[str, Any]] = []
        self._steps: list[int] = []
        self._substitutes: dict[tuple[int, int], int] = {}

    def record(self, step: int, micro_batches: list[MicroBatch]) -> None:
        """Note what the plan gave a step."""
        self._steps.append(step)
        for micro_batch in micro_batches:
            count = len(micro_batch.samples)
            self._pending.append(
                {
                    "step": np.full(count, step),
                    "slot": micro_batch.first_slot + np.arange(count),
                    "epoch": micro_batch.epochs,
                    "sample": micro_batch.samples,
                    "repeat": micro_batch.repeats,
                    "bucket": np.full(count, micro_batch.bucket),
                }
            )

    def substitute(self, step: int, slot: int, substitute: int) -> None:
        """Note that a draw of a step that has not been flushed yet was replaced."""
        self._substitutes[step, slot] = substitute

    def flush(self) -> None:
        """Write the pending steps as one part."""
        if not self._steps:
            return
        columns = {name: np.concatenate([rows[name] for rows in self._pending]) for name in self._pending[0]}
        planned = columns["sample"].copy()
        replaced = np.zeros(len(planned), dtype=bool)
        for i, place in enumerate(zip(columns["step"].tolist(), columns["slot"].tolist(), strict=True)):
            if place in self._substitutes:
                columns["sample"][i], replaced[i] = self._substitutes[place], True
        arrays = [pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()]
        table = pa.Table.from_arrays([*arrays, pa.array(planned, pa.uint64(), mask=~replaced)], schema=SCHEMA)
        _write(self._folder / f"steps-{self._steps[0]:08d}-{self._steps[-1]:08d}.parquet", table)
        self._pending.clear()
        self._steps.clear()
        self._substitutes.clear()

    def supersede(self, step: int) -> None:
        """Remove the rows of steps beyond `step`: a resume trains them again, and writes the same rows."""
        for path in sorted(self._folder.glob("steps-*.parquet")):
            first, last = (int(number) for number in PART.fullmatch(path.name).groups())  # type: ignore[union-attr]
            if last <= step:
                continue
            if first <= step:
                table = pq.read_table(path)
                kept = table.filter(pa.compute.less_equal(table["step"], step))
                _write(self._folder / f"steps-{first:08d}-{step:08d}.parquet", kept)
            path.unlink()


def read_ledger(folder: Path) -> pa.Table:
    """All rows of a run's ledger, by step and slot."""
    parts = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("steps-*.parquet"))]
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    return table.sort_by([("step", "ascending"), ("slot", "ascending")])


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_suffix(".tmp")
    encodings = {"step": "DELTA_BINARY_PACKED", "slot": "DELTA_BINARY_PACKED"}
    dictionary = ["epoch", "repeat", "bucket"]
    pq.write_table(table, temporary, compression="zstd", use_dictionary=dictionary, column_encoding=encodings)
    temporary.replace(path)
