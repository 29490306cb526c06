"""The loader next to bare processes that do nothing but decode the same pictures."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from finetune.data.buckets import Crop
from finetune.data.config import DataConfig
from finetune.data.images import ImageInfo, load
from finetune.data.index import IMAGE, Span
from finetune.data.preparer import Preparer
from finetune.data.prompts.length import TokenLimit
from finetune.data.samples import place_of
from finetune.feed import Feed
from finetune.model.text import PromptTokenizer
from tests.bench.bench_images import WHITE
from tests.bench.feeding import (
    IMAGES,
    LATENTS,
    NO_LATENTS,
    POLICIES,
    SEED,
    STEPS,
    WORKERS,
    data_config,
    drain,
    opened,
    shards,
    tokenizer,
)
from tests.bench.figure import Figure
from tests.bench.pictures import kind
from tests.bench.timing import Cost, cost, in_turns, spread

REPEATS = 5


class Decode(NamedTuple):
    """What one draw asks of the decoder."""

    span: Span
    crop: Crop
    mirrored: bool


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Images per second of the loader, noise and prompts included, as a share of what bare processes decode.

    Args:
        work: folder for the shards.
        shared: the folder of real photographs; None for synthetic ones.
    """
    config = data_config(shards(work, shared), work / "cache")
    feed, tokenize = opened(config, work), tokenizer(work)
    decodes = _decodes(feed, config, tokenize)
    costs = in_turns(
        [
            lambda repeat: _bare(decodes),
            lambda repeat: cost(lambda: drain(feed, range(STEPS), tokenize, LATENTS)),
            lambda repeat: cost(lambda: drain(feed, range(STEPS), tokenize, NO_LATENTS)),
        ],
        REPEATS,
    )
    shares = costs[:, :1] / costs[:, 1:]  # [repeats, with and without noise, wall and CPU]
    (share, share_cpu), (noiseless, noiseless_cpu) = np.median(shares, axis=0)
    rates = IMAGES / np.median(costs[..., 0], axis=0)
    noise_ms = np.median(costs[:, 1, 1] - costs[:, 2, 1]) / IMAGES * 1000
    yield Figure(
        "data.loader_efficiency",
        float(share),
        "ratio",
        f"images/s of the loader / of bare decoding, {WORKERS} processes each, {IMAGES} {kind(shared)} to 768² "
        f"buckets; {spread(shares[:, 0, 0])}; {rates[1]:.0f} against {rates[0]:.0f}; {share_cpu:.2f} by CPU time; "
        f"without noise {noiseless:.2f} ({noiseless_cpu:.2f} by CPU time); noise takes {noise_ms:.1f} CPU-ms an image",
    )


def _decodes(feed: Feed, config: DataConfig, tokenize: PromptTokenizer) -> list[Decode]:
    """What the loader will decode, in its order."""
    limit = TokenLimit(tokenize.count, tokenize.max_tokens)
    preparer = Preparer(feed.plan, feed.sources, config, POLICIES, limit, SEED)
    index = feed.sources.all[0].index
    found = []
    for micro_batch in (m for step in range(STEPS) for m in feed.plan.step(step)):
        for draw in micro_batch.draws:
            row = feed.sources.all[0].row(place_of(draw.sample))
            info = ImageInfo(int(index.width[row]), int(index.height[row]), "JPEG")
            record = feed.sources.read(draw.sample, draw.epoch, whole_shard=True)
            found.append(Decode(index.spans(row)[IMAGE], *preparer.crop(info, record, micro_batch.bucket, draw)))
    return found


def _bare(decodes: list[Decode]) -> Cost:
    forked = multiprocessing.get_context("fork")

    def run() -> None:
        processes = [forked.Process(target=_decode, args=(decodes[i::WORKERS],)) for i in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0

    return cost(run)


def _decode(decodes: list[Decode]) -> None:
    torch.set_num_threads(1)  # as in the loader's workers
    files = {span.location: os.open(span.location, os.O_RDONLY) for span, _, _ in decodes}
    for span, crop, mirrored in decodes:
        load(os.pread(files[span.location], span.size, span.offset), crop, mirrored, WHITE)
