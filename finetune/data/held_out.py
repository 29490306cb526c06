"""Which samples are never trained but kept for validation: a function of their keys alone, so that a picture that
comes again, in another source or edition, is on the same side."""

import numpy as np
import pyarrow as pa

from finetune.data.buckets import I64
from finetune.data.hashing import U64, hash_counters, purpose_key, splitmix64

PIECE = 1 << 18
WORD = 8
KEY = purpose_key(0, "held out")
"""Not of the run's seed: all runs over a data set hold out the same samples."""


def held_out(keys: pa.ChunkedArray, share: float) -> I64:
    """The rows that are held out: int64 [rows]."""
    return np.flatnonzero(hash_keys(keys) < np.uint64(share * 2.0**64)).astype(np.int64)


def hash_keys(keys: pa.ChunkedArray) -> U64:
    """A 64-bit hash of every key, an Arrow large string: uint64 [keys]."""
    pieces = [_hash_piece(chunk.slice(start, PIECE)) for chunk in keys.chunks for start in range(0, len(chunk), PIECE)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint64)


def _hash_piece(keys: pa.LargeStringArray) -> U64:
    _, offsets, data = keys.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[keys.offset : keys.offset + len(keys) + 1]
    letters = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]]
    lengths = np.diff(ends)
    width = -(-int(lengths.max(initial=1)) // WORD) * WORD
    padded = np.zeros((len(keys), width), dtype=np.uint8)
    padded[np.arange(width) < lengths[:, None]] = letters
    words = padded.view("<u8")
    hashes = hash_counters(KEY, lengths)
    for column in range(words.shape[1]):
        # Longer keys of the same piece must not matter, so a key takes in its own words alone.
        mixed = splitmix64(hashes ^ splitmix64(words[:, column]))
        hashes = np.where(column * WORD < lengths, mixed, hashes)
    return hashes
