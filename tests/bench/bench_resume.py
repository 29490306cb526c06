"""How much later the first batch comes after a resume far into a run than at its start."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.data.config import SourceConfig
from finetune.data.index import FILE_NAME, TARS, Index, write_index
from tests.bench.feeding import WORKERS, data_config, drain, opened, shards, tokenizer
from tests.bench.figure import Figure
from tests.bench.timing import in_fresh_process

SHARDS, SAMPLES = 1000, 3300
STEP, GLOBAL_BATCH = 150_000, 256
REPEATS = 3
HALF_AGAIN = 1.5


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Seconds from the indexes to the first batch at a late step, less those at step 0.

    Args:
        work: folder for the shards.
        shared: the folder of real photographs; None for synthetic ones.
    """
    folder = _large_index(shards(work, shared))
    times = np.array([[in_fresh_process(first_batch_s, folder, step) for step in (0, STEP)] for _ in range(REPEATS)])
    later = times[:, 1] - times[:, 0]
    start, half = (in_fresh_process(first_batch_s, folder, step, HALF_AGAIN) for step in (0, STEP))
    yield Figure(
        "data.resume_first_batch_s",
        float(np.median(later)),
        "s",
        f"first batch at step {STEP:,} of {SHARDS * SAMPLES:,} samples, less that at step 0, in fresh processes with "
        f"{WORKERS} workers; {later.min():.2f} to {later.max():.2f} in {REPEATS} pairs; "
        f"{np.median(times[:, 1]):.2f} and {np.median(times[:, 0]):.2f} s from the index on, imports left out; with "
        f"repeats of {HALF_AGAIN} {half:.2f} and {start:.2f} s",
    )


def first_batch_s(folder: Path, step: int, repeats: float = 1.0) -> float:
    """Open the data, plan, and take one batch of a step, all in this process and its workers."""
    tokenize, config = tokenizer(folder), data_config(folder, folder / "cache", window_shards=16)
    config = replace(config, shards=None, sources={"all": SourceConfig(str(folder), repeats)})
    began = time.perf_counter()
    feed = opened(config, folder, global_batch=GLOBAL_BATCH)
    opened_s = time.perf_counter() - began
    return opened_s + drain(feed, range(step, step + 1), tokenize)


def _large_index(folder: Path) -> Path:
    """An index of many large shards, which all are one and the same small one."""
    small = Index.load(folder)
    rows = pa.ipc.open_file(folder / FILE_NAME).read_all().slice(0, small.shards[0].samples)
    table = rows.take(pa.array(np.arange(SAMPLES) % rows.num_rows)).combine_chunks()
    shard = replace(small.shards[0], name=small.location(0), samples=SAMPLES)
    large = folder.parent / "large"
    large.mkdir()
    write_index(large, TARS, [shard] * SHARDS, [table] * SHARDS)
    return large
