"""What tests of several folders call."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from finetune.data.batch import Chunks
from finetune.data.config import BucketsConfig, CacheConfig, DataConfig
from finetune.data.index import Index
from finetune.data.plan import MicroBatch
from finetune.data.prepare import DataSet
from finetune.data.prompts.length import TokenLimit
from finetune.data.shapes import PlanSettings, Shape
from finetune.data.sources import Record, Sources

SMALL = BucketsConfig(resolution_px=64, max_side_px=96, step_px=16)


class Letters:
    """A stand-in for the tokenizer that tells prompts apart."""

    max_tokens = 75

    def __call__(self, prompts: list[str]) -> Chunks:
        """The letters of prompts, each in a chunk."""
        rows = [[ord(c) for c in p.ljust(77)[:77]] for p in prompts]
        return Chunks(torch.tensor(rows)[:, None], torch.arange(len(rows))[:, None])

    def count(self, text: str) -> int:
        """Every word is a token."""
        return len(text.split())


def blank(prompts: int, chunks: int = 1, encoders: int = 1) -> Chunks:
    """Prompts of zeros, none of whose chunks is shared."""
    rows = torch.arange(prompts * chunks).view(prompts, chunks)
    return Chunks(torch.zeros(rows.numel(), encoders, 77, dtype=torch.int64), rows)


WORDS = TokenLimit(Letters().count, Letters.max_tokens)


def data_config(shards: Path | str, **settings: object) -> DataConfig:
    """Small buckets, and a cache beside the shards or where the settings say."""
    given = {"buckets": SMALL, "window_shards": 1, "cache": CacheConfig(timeout_s=2.0), **settings}
    return DataConfig(shards=str(shards), **given)  # type: ignore[arg-type]


def plan_settings(config: DataConfig, seed: int) -> PlanSettings:
    """Micro-batches of 4 and steps of 16."""
    return PlanSettings((Shape(0, config.buckets, 4),), global_batch=16, seed=seed)


def open_data(config: DataConfig, kept: Path, *, seed: int = 5, notes: Path | None = None) -> DataSet:
    """A data set in micro-batches of 4 and steps of 16."""
    return DataSet(config, plan_settings(config, seed), kept, notes)


def open_sources(folder: Path) -> Sources:
    """What a run would read from a folder that holds an index."""
    dataset = open_data(data_config(folder), folder / "kept")
    return dataset.sources(dataset.began())


def sample_ids(index: Index) -> list[int]:
    """The ids of all samples of a run's first source, in the order of its rows."""
    return [shard << 32 | i for shard, s in enumerate(index.shards) for i in range(s.samples)]


def read_all(folder: Path) -> list[Record]:
    """All samples of a folder, in the order of its index."""
    sources = open_sources(folder)
    return [sources.read(sample, 0, whole_shard=True) for sample in sample_ids(sources.all[0].index)]


def draws_of(samples: np.ndarray, bucket: int = 0, epoch: int = 0, first_slot: int = 0) -> MicroBatch:
    """A micro-batch of some sample ids."""
    epochs, repeats = np.full(len(samples), epoch), np.zeros(len(samples), dtype=np.int64)
    return MicroBatch(bucket, samples, epochs, repeats, first_slot, (epoch, 0))


def own_memory(*modules: nn.Module) -> None:
    """Give all weights memory of their own: where it begins elsewhere, as in a mapped file, some processors add up in
    another order."""
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        parameter.data = parameter.data.clone()
