"""A run's batches without a run: one process that takes them as fast as they come."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.demo.tiny_model import train_tokenizer
from finetune.data.batch import LatentShape
from finetune.data.config import CacheConfig, DataConfig
from finetune.data.prompts.config import CaptionsConfig, TagsConfig
from finetune.data.prompts.prompter import Policy, Prompter
from finetune.data.shapes import PlanSettings, Shape
from finetune.diffusion.config import DiffusionConfig
from finetune.feed import Feed
from finetune.model.text import PromptTokenizer
from tests.bench.pictures import BUCKETS, WORDS, jpeg, pictures, write_shards

MICRO_BATCH, GLOBAL_BATCH, SEED = 8, 32, 5
WORKERS = 2
LATENTS = LatentShape(4, 8)
NO_LATENTS = LatentShape(1, 256)
"""So few that their noise costs nothing."""
SHARDS, SAMPLES = 16, 32
STEPS = SHARDS * SAMPLES // GLOBAL_BATCH
IMAGES = STEPS * GLOBAL_BATCH
POLICIES = [Policy(Prompter(CaptionsConfig(tags=TagsConfig(drop=0.15)), SEED), 1.0)]
"""As in conf/hyperfusion.yaml."""
MAX_TOKENS = 525


class Alone:
    """The only rank there is."""

    rank, world, is_main = 0, 1, True

    def gather(self, value: Any) -> list[Any]:
        """This rank's value."""
        return [value]


def shards(work: Path, shared: Path | None) -> Path:
    """The shards that loaders are measured with; written once."""
    folder = work / "shards"
    if not folder.exists():
        write_shards(folder, [jpeg(picture) for picture in pictures(shared)], shards=SHARDS, samples=SAMPLES)
    return folder


def tokenizer(work: Path) -> PromptTokenizer:
    """A tokenizer of the labels' words."""
    return PromptTokenizer([train_tokenizer(WORDS * 100, work / "tokenizer")], MAX_TOKENS)


def data_config(location: Path | str, cache: Path, **changes: Any) -> DataConfig:
    """A recipe's data with 768² buckets."""
    cached = CacheConfig(folder=str(cache))
    config = DataConfig(str(location), buckets=BUCKETS, cache=cached, flip=0.5, workers=WORKERS, window_shards=4)
    return replace(config, **changes)


def opened(config: DataConfig, work: Path, **settings: int) -> Feed:
    """The data of a run that begins."""
    wanted = {"micro_batch": MICRO_BATCH, "global_batch": GLOBAL_BATCH, **settings}
    shapes = (Shape(0, config.buckets, wanted["micro_batch"]),)
    feed = Feed(config, POLICIES, PlanSettings(shapes, wanted["global_batch"], SEED), work / "run", Alone())
    feed.begin(None, 0)
    return feed


def drain(feed: Feed, steps: range, tokenize: PromptTokenizer, latents: LatentShape = LATENTS) -> float:
    """Take all batches of some steps; seconds to the first, from the opening of the loader on."""
    first_s, began = 0.0, time.perf_counter()
    with feed.batches(steps, tokenize, latents, diffusion=DiffusionConfig(), pin=False) as batches:
        for step in steps:
            batches.reached(step)
            for _ in range(feed.plan.global_batch // feed.plan.micro_batch(step)):
                next(batches)
                first_s = first_s or time.perf_counter() - began
    return first_s
