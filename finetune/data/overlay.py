"""Overlays: tables of labels that stand over what the shards hold.

A file is read once when it is taken in, matched against its source's index and kept as one memory-mapped Arrow file, so
that a run whose overlay has been changed or deleted since still knows what it trained with.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from finetune.data.config import OverlayConfig
from finetune.data.hashing import U64
from finetune.data.index import Index, file_sha256
from finetune.data.labels import Labels, as_strings
from finetune.data.samples import rows_of_ids
from finetune.errors import DataFault, UserError

LABELS = {"tags": "tags", "caption": "captions", "captions": "captions"}
COLUMNS = {"key", "id", "score", "exclude", *LABELS}


class Overlay:
    """An overlay as it was taken in. Pickles as its path."""

    def __init__(self, path: Path, mode: str) -> None:
        """Map what `take_in` has written.

        Args:
            mode: "replace" or "add".
        """
        self.path = path
        self._mode = mode
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._rows: npt.NDArray[np.int64] = table["row"].combine_chunks().to_numpy()
        self._tags, self._captions = table["tags"], table["captions"]
        self.left_out: npt.NDArray[np.int64] = self._rows[table["left_out"].to_numpy()]
        """Rows of samples that are left out: int64 [rows]."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Overlay, (self.path, self._mode)

    def over(self, row: int, labels: Labels) -> Labels:
        """A sample's labels with the overlay's."""
        at = int(np.searchsorted(self._rows, row))
        if at == len(self._rows) or self._rows[at] != row:
            return labels
        tags, captions = self._tags[at].as_py(), self._captions[at].as_py()
        if self._mode == "add":
            new_tags = tuple(tag for tag in tags or () if tag not in labels.tags)
            return Labels(labels.tags + new_tags, labels.captions + tuple(captions or ()))
        return Labels(
            labels.tags if tags is None else tuple(tags), labels.captions if captions is None else tuple(captions)
        )


def take_in(config: OverlayConfig, index: Index, folder: Path) -> str:
    """Read an overlay's file and keep it in a folder, for an index. Its name there.

    Raises:
        UserError: the file cannot be read, has columns of another kind, or names none of the index's samples.
    """
    path = Path(str(config.path)).expanduser()
    digest = overlay_digest(config)
    kept = folder / f"overlay-{hashlib.sha256(f'{digest}:{index.fingerprint}'.encode()).hexdigest()[:16]}.arrow"
    if not kept.exists():
        table = _read(path)
        rows, lines = _match(table, index, path)
        if not len(rows):
            raise UserError(f"the overlay {path} names no sample of {index.root}: its key is that of the index")
        folder.mkdir(parents=True, exist_ok=True)
        _keep(table, rows, lines, config.min_score, path, kept)
    return kept.name


def overlay_digest(config: OverlayConfig) -> str:
    """What changes when an overlay's content does, or how it is read. Raises UserError where there is no such file."""
    path = Path(str(config.path)).expanduser()
    if not path.is_file():
        raise UserError(f"there is no overlay {path}: give a parquet or JSONL file, or null for none")
    return f"{file_sha256(path)}:{config.min_score}"


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.json.read_json(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"the overlay {path} cannot be read: {str(error).splitlines()[0]}") from error
    unknown = sorted(set(table.column_names) - COLUMNS)
    if unknown or not {"key", "id"} & set(table.column_names):
        wrong = f"has the column {unknown[0]!r}" if unknown else "has neither a column key nor id"
        raise UserError(f"the overlay {path} {wrong}: its columns are {', '.join(sorted(COLUMNS))}")
    return table


def _match(table: pa.Table, index: Index, path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(rows of the index, lines of the table), pair by pair, sorted by row; of several lines for a row, the last."""
    try:
        if "id" in table.column_names:
            lines = np.arange(table.num_rows)
            rows = _rows_of(table["id"].cast(pa.uint64()).to_numpy(), index)
            lines, rows = lines[rows >= 0], rows[rows >= 0]
        else:
            keys = table["key"].cast(pa.large_string())
            rows = index.rows(keys.to_pylist())
            by_key = {key: line for line, key in enumerate(keys.to_pylist())}
            lines = np.array([by_key[index.key(int(row))] for row in rows], dtype=np.int64)
    except pa.ArrowInvalid as error:
        raise UserError(f"the overlay {path} has keys or ids of another type: {error}") from error
    order = np.lexsort((lines, rows))
    rows, lines = rows[order], lines[order]
    last = np.append(rows[1:] != rows[:-1], True) if len(rows) else np.zeros(0, dtype=bool)
    return rows[last], lines[last]


def _rows_of(ids: U64, index: Index) -> npt.NDArray[np.int64]:
    """The row of every sample id, −1 for those that the index does not hold: int64 [ids]."""
    shards, ordinals = (ids >> np.uint64(32) & np.uint64(0xFFFFFF)).astype(np.int64), ids & np.uint64(0xFFFFFFFF)
    known = shards < len(index.shards)
    samples = np.diff(index.first_rows)
    known[known] &= ordinals[known] < samples[shards[known]].astype(np.uint64)
    rows = np.full(len(ids), -1, dtype=np.int64)
    rows[known] = rows_of_ids(ids[known], index.first_rows)
    return rows


def _keep(table: pa.Table, rows: Any, lines: Any, min_score: float | None, path: Path, kept: Path) -> None:
    matched = table.take(pa.array(lines))
    columns: dict[str, pa.Array] = {"row": pa.array(rows, pa.int64())}
    columns |= dict.fromkeys(("tags", "captions"), pa.nulls(len(rows), pa.list_(pa.large_string())))
    for name in set(LABELS) & set(table.column_names):
        try:
            values = [
                None if v is None else as_strings(v, name, split=name == "tags") for v in matched[name].to_pylist()
            ]
        except DataFault as fault:
            raise UserError(f"the overlay {path}: {fault}") from fault
        columns[LABELS[name]] = pa.array(values, pa.list_(pa.large_string()))
    left_out = np.zeros(len(rows), dtype=bool)
    if "exclude" in table.column_names:
        left_out |= pc.fill_null(matched["exclude"].cast(pa.bool_()), False).to_numpy()
    if "score" in table.column_names and min_score is not None:
        left_out |= pc.fill_null(pc.less(matched["score"], min_score), False).to_numpy()
    temporary = kept.with_suffix(".tmp")
    whole = pa.table({**columns, "left_out": pa.array(left_out)}).combine_chunks()
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)
    temporary.replace(kept)
