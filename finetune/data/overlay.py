"""Overlays: tables of labels that stand over what the shards hold.

A file is read once when it is taken in, matched against its source's index and kept as one memory-mapped Arrow file, so
that a run whose overlay has been changed or deleted since still knows what it trained with.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from finetune.data.buckets import I64
from finetune.data.config import OverlayConfig
from finetune.data.index import Index, file_sha256
from finetune.data.labels import Labels
from finetune.data.samples import rows_of_ids
from finetune.errors import UserError

LABELS = {"tags": "tags", "caption": "captions", "captions": "captions"}
COLUMNS = {"key", "id", "score", "exclude", *LABELS}
STRINGS = pa.large_list(pa.large_string())
LONGEST_LINE = 16 << 20
"""Bytes that a line of JSON may have."""
KEYS_ARE_TEXT = pa.schema([("key", pa.large_string())])
"""Left to itself, pyarrow would read keys that look like dates as points in time."""


class Overlay:
    """An overlay as it was taken in. Pickles as its path."""

    def __init__(self, path: Path) -> None:
        """Map what `take_in` has written."""
        self.path = path
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._mode = table.schema.metadata[b"mode"].decode()
        self._rows: I64 = table["row"].combine_chunks().to_numpy()
        self._labels = {name: table[name].combine_chunks() for name in ("tags", "captions")}
        self.left_out: I64 = self._rows[table["left_out"].to_numpy()]
        """Rows of samples that are left out: int64 [rows]."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Overlay, (self.path,)

    def have(self, name: str, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which samples have "tags" or "captions" with the overlay's, given which have stored ones: bool [rows]."""
        found = stored.astype(bool)
        lengths = pc.fill_null(pc.list_value_length(self._labels[name]), -1).to_numpy(zero_copy_only=False)
        decides = (lengths > 0) if self._mode == "add" else (lengths >= 0)
        decides &= self._rows < len(found)
        found[self._rows[decides]] = lengths[decides] > 0
        return found

    def over(self, row: int, labels: Labels) -> Labels:
        """A sample's labels with the overlay's."""
        at = int(np.searchsorted(self._rows, row))
        if at == len(self._rows) or self._rows[at] != row:
            return labels
        tags, captions = (self._labels[name][at].as_py() for name in ("tags", "captions"))
        if self._mode == "add":
            return added(labels, tags or (), captions or ())
        if tags is not None:
            labels = replace(labels, tags=tuple(tags), categories=())
        return labels if captions is None else replace(labels, captions=tuple(captions), caption_names=())


def added(labels: Labels, tags: Sequence[str], captions: Sequence[str]) -> Labels:
    """Labels with more tags and captions. Where the others have categories and names, the new tags have none and the
    new captions are named "overlay"."""
    new = [tag for tag in tags if tag not in labels.tags]
    return replace(
        labels,
        tags=(*labels.tags, *new),
        captions=(*labels.captions, *captions),
        categories=labels.categories and (*labels.categories, *("" for _ in new)),
        caption_names=labels.caption_names and (*labels.caption_names, *("overlay" for _ in captions)),
    )


def take_in(config: OverlayConfig, index: Index, source: int, folder: Path) -> str:
    """Read an overlay's file and keep it in a folder, for the index of a source. Its name there.

    Raises:
        UserError: the file cannot be read, has columns of another kind, or names none of the index's samples.
    """
    path = Path(str(config.path)).expanduser()
    digest = overlay_digest(config)
    kept = (
        folder / f"overlay-{hashlib.sha256(f'{digest}:{source}:{index.fingerprint}'.encode()).hexdigest()[:16]}.arrow"
    )
    if not kept.exists():
        try:
            table = _read(path)
            rows, lines = _match(table, index, source)
            parsed = _parsed(table, config.min_score).take(pa.array(lines))
            parsed.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the overlay {path} cannot be read: {str(error).splitlines()[0]}") from error
        if not len(rows):
            raise UserError(f"the overlay {path} names no sample of {index.root}, whose keys are like {index.key(0)!r}")
        folder.mkdir(parents=True, exist_ok=True)
        _keep(parsed.append_column("row", pa.array(rows)), config.mode, kept)
    return kept.name


def overlay_digest(config: OverlayConfig) -> str:
    """What changes when an overlay's content does, or how it is read. Raises UserError where there is no such file."""
    path = Path(str(config.path)).expanduser()
    try:
        return f"{file_sha256(path)}:{config.mode}:{config.min_score}"
    except OSError as error:
        raise UserError(
            f"the overlay {path} cannot be read ({error}): give a parquet or JSONL file, or null"
        ) from error


def _read(path: Path) -> pa.Table:
    """The table of a file. Raises ArrowException or OSError where it is none, and UserError where its columns are
    others than COLUMNS."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        options = pyarrow.json.ParseOptions(explicit_schema=KEYS_ARE_TEXT, unexpected_field_behavior="infer")
        table = pyarrow.json.read_json(path, pyarrow.json.ReadOptions(block_size=LONGEST_LINE), options)
        if table["key"].null_count == table.num_rows:
            table = table.drop_columns("key")
    columns = set(table.column_names)
    if unknown := sorted(columns - COLUMNS):
        wrong = f"has the column {unknown[0]!r}"
    elif columns >= {"caption", "captions"}:
        wrong = "has both a column caption and captions"
    elif not columns & {"key", "id"}:
        wrong = "has neither a column key nor id"
    else:
        return table
    raise UserError(f"the overlay {path} {wrong}: its columns are {', '.join(sorted(COLUMNS))}")


def _match(table: pa.Table, index: Index, source: int) -> tuple[I64, I64]:
    """(rows of the index, lines of the table), pair by pair, sorted by row: int64 [pairs] each; of several lines for a
    row, the last. Where there is an id it decides."""
    last = table.num_rows - 1
    if "id" in table.column_names:
        ids = table["id"].cast(pa.uint64())
        lines = np.flatnonzero(ids.is_valid().to_numpy())
        rows = _rows_of(ids.drop_null().to_numpy(), index, source)
        lines, rows = lines[rows >= 0], rows[rows >= 0]
        rows, backwards = np.unique(rows[::-1], return_index=True)
        return rows, lines[::-1][backwards]
    keys = table["key"].cast(pa.large_string()).combine_chunks()
    # Of several equal values, `index_in` finds the first.
    backwards = pc.index_in(index.keys, value_set=keys.take(pa.array(np.arange(last, -1, -1))))
    rows = np.flatnonzero(backwards.is_valid().to_numpy())
    return rows, last - backwards.drop_null().to_numpy().astype(np.int64)


def _rows_of(ids: npt.NDArray[np.uint64], index: Index, source: int) -> I64:
    """The row of every sample id, −1 for those that the source does not hold: int64 [ids]."""
    shards, ordinals = (ids >> np.uint64(32) & np.uint64(0xFFFFFF)).astype(np.int64), ids & np.uint64(0xFFFFFFFF)
    known = (shards < len(index.shards)) & (ids >> np.uint64(56) == source)
    samples = np.diff(index.first_rows)
    known[known] &= ordinals[known] < samples[shards[known]].astype(np.uint64)
    rows = np.full(len(ids), -1, dtype=np.int64)
    rows[known] = rows_of_ids(ids[known], index.first_rows)
    return rows


def _parsed(table: pa.Table, min_score: float | None) -> pa.Table:
    """What each line says: tags and captions as lists or null, and whether the sample is left out."""
    columns = dict.fromkeys(("tags", "captions"), pa.nulls(table.num_rows, STRINGS))
    for name in set(LABELS) & set(table.column_names):
        columns[LABELS[name]] = strings(table[name].combine_chunks(), split=name == "tags")
    left_out = np.zeros(table.num_rows, dtype=bool)
    if "exclude" in table.column_names:
        left_out |= pc.fill_null(table["exclude"].cast(pa.bool_()), False).to_numpy()
    if "score" in table.column_names and min_score is not None:
        left_out |= pc.fill_null(pc.less(table["score"].cast(pa.float64()), min_score), False).to_numpy()
    return pa.table({**columns, "left_out": pa.array(left_out)})


def strings(column: pa.Array, *, split: bool) -> pa.Array:
    """What `labels.as_strings` makes of every value, all at once: STRINGS, null where the value is.

    Args:
        column: strings or lists of strings.
        split: whether a string is a list of tags.

    Raises:
        ArrowException: it holds something else.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_string())
        column = _split(column) if split else _single(column)
    lists = column.cast(STRINGS)
    values = pc.utf8_trim_whitespace(lists.values)
    full = pc.fill_null(pc.not_equal(values, ""), False)
    before = np.concatenate([[0], np.cumsum(full.to_numpy(zero_copy_only=False))])
    offsets = pa.array(before[lists.offsets.to_numpy()])
    return pa.LargeListArray.from_arrays(offsets, values.filter(full), mask=lists.is_null())


def _split(texts: pa.Array) -> pa.Array:
    """`labels.split_tags`, but that tags may be empty or have white space around them: STRINGS."""
    texts = pc.replace_substring(pc.utf8_trim_whitespace(texts), "\n", ",")
    spaced = pc.and_(pc.invert(pc.match_substring(texts, ",")), pc.match_substring(texts, "_"))
    by_comma = pc.split_pattern(texts, ",")
    return pc.if_else(spaced, pc.utf8_split_whitespace(texts), by_comma) if pc.any(spaced).as_py() else by_comma


def _single(texts: pa.Array) -> pa.Array:
    """Every string as a list of its own: STRINGS."""
    return pa.LargeListArray.from_arrays(pa.array(np.arange(len(texts) + 1)), texts, mask=texts.is_null())


def _keep(table: pa.Table, mode: str, kept: Path) -> None:
    temporary, whole = kept.with_suffix(".tmp"), table.combine_chunks().replace_schema_metadata({"mode": mode})
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)
    temporary.replace(kept)
