"""Checks that span two parts, and what is saved of a recipe."""

import pytest

from finetune.config import BatchConfig, Config, RunConfig, accumulation, check, resolved
from finetune.data.config import DataConfig
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.monitor.config import MonitorConfig, SamplesConfig
from finetune.phases import PhaseConfig
from finetune.strategy import StrategyConfig


def config(**parts: object) -> Config:
    defaults = {
        "run": RunConfig(name="test"),
        "train": BatchConfig(micro_batch=4, global_batch=48),
        "phases": [PhaseConfig(steps=1)],
        "model": ModelConfig(path="model"),
        "data": DataConfig(shards="shards"),
    }
    return Config(**{**defaults, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(("world", "expected"), [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)])
def test_accumulation_follows_from_the_world(world: int, expected: int) -> None:
    assert accumulation(config(), world) == expected


def test_a_world_that_does_not_divide_the_step_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match="shared by 5 processes: start one of 1, 2, 3, 4, 6, 12"):
        accumulation(config(), 5)


def test_single_is_one_process() -> None:
    with pytest.raises(UserError, match="strategy=single trains in one process but 2 were started"):
        check(config(strategy=StrategyConfig(name="single")), world=2)
    check(config(strategy=StrategyConfig(name="single")), world=1)


def test_samples_far_larger_than_what_is_trained_are_refused() -> None:
    samples = SamplesConfig(prompts=["a"], width_px=2048, height_px=512)
    with pytest.raises(UserError, match="2048×512 px, more than twice the longest side"):
        check(config(monitor=MonitorConfig(samples=samples)), world=1)


def test_secrets_are_blacked_out_wherever_they_stand() -> None:
    plain = resolved(
        config(data=DataConfig(shards="s3://user:pass@host/data"), model=ModelConfig(path="https://t0k3n@h/x"))
    )
    assert plain["data"]["shards"] == "s3://***@host/data"
    assert plain["model"]["path"] == "https://***@h/x"
    assert plain["optim"]["lr"] == config().optim.lr
    assert plain["model"]["max_tokens"] == 225
