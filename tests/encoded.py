"""Recipes with latents: encoded, and fed to training."""

from pathlib import Path
from typing import Any

from data_tools.latents.encode import Outcome, encode
from finetune.config import BatchConfig, Config, RunConfig, plan_settings, policies
from finetune.data.batch import Batch, LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.feed import Feed
from finetune.model.config import ModelConfig
from finetune.phases import PhaseConfig
from finetune.strategy import StrategyConfig
from tests.helpers import Letters, data_config
from tests.ranks import OneRank

LATENTS = LatentShape(4, 8)
"""Of the tiny model's VAE."""


def recipe(shards: Path | str, model: Path, *, precision: str = "fp32", phases: int = 1, **data: Any) -> Config:
    """Small buckets in micro-batches of 4 and steps of 16; a second phase has larger ones."""
    larger = PhaseConfig("4 epochs", buckets={"resolution_px": 96, "max_side_px": 128}, micro_batch=2)
    return Config(
        run=RunConfig("test"),
        train=BatchConfig(4, 16),
        phases=[PhaseConfig("2 epochs"), larger][:phases],
        model=ModelConfig(path=str(model)),
        data=data_config(shards, **{"workers": 0, **data}),
        strategy=StrategyConfig("single", precision),
    )


def encoded(config: Config, folder: Path, dtype: str = "fp16") -> list[Outcome]:
    """What comes of encoding a recipe's pictures."""
    return encode(config, folder / "kept", dtype)


def fed(config: Config, folder: Path) -> Feed:
    """The data of a run that begins; `folder` is the run's."""
    feed = Feed(config.data, policies(config), plan_settings(config), folder, OneRank())
    feed.begin(None, 0)
    return feed


def batches_of(feed: Feed, steps: range) -> list[Batch]:
    """The micro-batches of some steps of one phase."""
    with feed.batches(steps, Letters(), LATENTS, diffusion=DiffusionConfig(), pin=False) as opened:
        count = 16 // feed.plan.micro_batch(steps.start) * len(steps)
        return [next(opened) for _ in range(count)]
