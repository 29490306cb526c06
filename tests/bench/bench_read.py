"""One sample's bytes out of local shards: by the index, next to webdataset's reader."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset

from finetune.data.sources import Sources
from tests.bench.figure import Figure
from tests.bench.pictures import jpeg, kind, pictures, shrunk, write_shards
from tests.bench.timing import Cost, cost, in_turns, spread
from tests.helpers import open_sources, sample_ids

SHARDS, SAMPLES = 3, 1000
SHUFFLED = 1000
REPEATS = 7


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Samples per second in a shuffled order, picture and labels; ours come parsed and webdataset's as bytes.

    Args:
        work: folder for the shards.
        shared: the folder of real photographs; None for synthetic ones.
    """
    folder = write_shards(work / "read", [jpeg(shrunk(p)) for p in pictures(shared)], shards=SHARDS, samples=SAMPLES)
    sources = open_sources(folder)
    _by_index(sources, 0)  # both sides find the shards in the page cache
    costs = in_turns([lambda repeat: _by_webdataset(folder), lambda repeat: _by_index(sources, repeat)], REPEATS)[
        ..., 0
    ]
    ratios = costs[:, 0] / costs[:, 1]
    theirs, ours = SHARDS * SAMPLES / np.median(costs, axis=0)
    kib = sum(shard.size for shard in sources.all[0].index.shards) / (SHARDS * SAMPLES) / 1024
    yield Figure(
        "data.read_vs_webdataset",
        float(np.median(ratios)),
        "ratio",
        f"samples/s by index / by webdataset's shuffled reader, one process, {SHARDS} shards of {SAMPLES} "
        f"{kind(shared)} at {kib:.0f} KiB in the page cache; {spread(ratios)}; {ours:,.0f} against {theirs:,.0f}",
    )


def _by_index(sources: Sources, repeat: int) -> Cost:
    ids = np.random.default_rng(repeat).permutation(sample_ids(sources.all[0].index)).tolist()

    def read() -> None:
        for sample in ids:
            sources.read(sample, 0, whole_shard=True)

    return cost(read)


def _by_webdataset(folder: Path) -> Cost:
    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def read() -> None:
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLED)
        assert sum(len(sample["jpg"]) + len(sample["json"]) > 0 for sample in samples) == SHARDS * SAMPLES

    return cost(read)
