"""What a sample is called: source << 56 | shard << 32 | ordinal within the shard. Keys may repeat, and these do not; a
sample keeps its id when shards are added."""

from typing import NamedTuple

import numpy as np

from finetune.data.buckets import I64
from finetune.data.hashing import U64

_SOURCE, _SHARD = np.uint64(56), np.uint64(32)
_SHARD_MASK, _ORDINAL_MASK = np.uint64(0xFFFFFF), np.uint64(0xFFFFFFFF)


class Place(NamedTuple):
    """Where a sample lies."""

    source: int
    shard: int
    ordinal: int


def place_of(sample: int) -> Place:
    """What a sample id says."""
    return Place(sample >> 56, sample >> 32 & 0xFFFFFF, sample & 0xFFFFFFFF)


def sample_id(place: Place) -> int:
    """The id of what lies at a place."""
    return place.source << 56 | place.shard << 32 | place.ordinal


def ids_of_rows(rows: I64, source: int, first_rows: I64) -> U64:
    """Sample ids of some rows of a source's index: uint64 [rows].

    Args:
        first_rows: the row at which each shard begins, and the number of rows: int64 [shards + 1].
    """
    shards = np.searchsorted(first_rows, rows, side="right") - 1
    ordinals = (rows - first_rows[shards]).astype(np.uint64)
    ids: U64 = np.uint64(source) << _SOURCE | shards.astype(np.uint64) << _SHARD | ordinals
    return ids


def sources_of_ids(ids: U64) -> I64:
    """The number of the source of every sample: int64 [ids]."""
    return (ids >> _SOURCE).astype(np.int64)


def rows_of_ids(ids: U64, first_rows: I64) -> I64:
    """The inverse of `ids_of_rows`: int64 [ids]."""
    rows: I64 = first_rows[(ids >> _SHARD & _SHARD_MASK).astype(np.int64)] + (ids & _ORDINAL_MASK).astype(np.int64)
    return rows
