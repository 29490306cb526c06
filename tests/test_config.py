"""Checks that span two parts, and what is saved of a recipe."""

from pathlib import Path

import pytest

from finetune.config import BatchConfig, Config, RunConfig, check, plan_settings, resolved
from finetune.data.config import DataConfig
from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError
from finetune.health.config import HealthConfig
from finetune.model.config import ModelConfig
from finetune.monitor.config import MonitorConfig
from finetune.monitor.samples.config import SamplesConfig
from finetune.phases import PhaseConfig
from finetune.strategy import StrategyConfig


def config(**parts: object) -> Config:
    defaults = {
        "run": RunConfig(name="test"),
        "train": BatchConfig(micro_batch=4, global_batch=48),
        "phases": [PhaseConfig("1 epochs")],
        "model": ModelConfig(path="model"),
        "data": DataConfig(shards="shards"),
    }
    return Config(**{**defaults, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_worlds_that_divide_the_step_are_allowed(world: int) -> None:
    check(config(), world)


@pytest.mark.parametrize("world", [5, 24])
def test_a_world_that_does_not_divide_the_step_is_refused_with_those_that_do(world: int) -> None:
    with pytest.raises(UserError, match=f"shared by {world} processes: start one of 1, 2, 3, 4, 6, 12"):
        check(config(), world)


@pytest.mark.parametrize(
    ("stall_s", "fits"), [(0.0, True), (61.0, True), (60.0, False), (1799.0, True), (1800.0, False)]
)
def test_a_rank_that_stops_is_told_from_one_that_waits_for_data(stall_s: float, fits: bool) -> None:
    given = config(health=HealthConfig(stall_s=stall_s))
    if fits:
        check(given, 1)
        return
    with pytest.raises(UserError, match=r"health\.stall_s is .*above data.* \(60\) and below .*1800"):
        check(given, 1)


def test_every_phase_s_micro_batches_have_to_be_shared() -> None:
    phases = [PhaseConfig("1 epochs"), PhaseConfig("2 epochs", micro_batch=24)]
    with pytest.raises(UserError, match="micro-batches of 24 cannot be shared by 3 processes: start one of 1, 2"):
        check(config(phases=phases), world=3)
    for wrong in (0, 5):
        with pytest.raises(UserError, match=rf"a phase's micro_batch is {wrong}: .* train\.global_batch \(48\)"):
            check(config(phases=[PhaseConfig("1 epochs", micro_batch=wrong)]), world=1)


@pytest.mark.parametrize("optimizer", ["adafactor", "prodigy", "dadapt_adam"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_what_shards_would_make_another_optimizer_is_refused_in_any_phase(optimizer: str, strategy: str) -> None:
    rates = {"lr": 1.0, "text_encoder_lr": 1.0}
    phases = [PhaseConfig("1 epochs"), PhaseConfig("2 epochs", {"name": optimizer, **rates})]
    with pytest.raises(UserError, match=f"optim.name={optimizer} cannot train under strategy={strategy}: .*shard"):
        check(config(phases=phases, strategy=StrategyConfig(name=strategy)), world=1)
    check(config(phases=phases, strategy=StrategyConfig(name="single")), world=1)


def test_the_plan_s_settings_are_those_of_the_phases() -> None:
    larger = {"resolution_px": 1024, "max_side_px": 1536}
    phases = [PhaseConfig("3 epochs"), PhaseConfig("4 epochs"), PhaseConfig("9 epochs", {}, larger, 2)]
    settings = plan_settings(config(phases=phases))
    assert (settings.global_batch, settings.seed) == (48, 0)
    assert [(s.epoch, s.micro_batch, s.buckets.resolution_px) for s in settings.shapes] == [(0, 4, 512), (4, 2, 1024)]


def test_single_is_one_process() -> None:
    with pytest.raises(UserError, match="strategy=single trains in one process but 2 were started"):
        check(config(strategy=StrategyConfig(name="single")), world=2)
    check(config(strategy=StrategyConfig(name="single")), world=1)


def test_blocks_that_fetch_their_weights_are_not_compiled() -> None:
    model = ModelConfig(path="m", compile=True)
    with pytest.raises(UserError, match=r"model\.compile=true cannot be used under strategy=zero3: use strategy=zero2"):
        check(config(model=model, strategy=StrategyConfig(name="zero3")), world=1)
    check(config(model=model, strategy=StrategyConfig(name="zero2")), world=1)


def test_samples_far_larger_than_what_is_trained_are_refused() -> None:
    samples = SamplesConfig(prompts=["a"], sizes_px=[[512, 512], [2048, 512]])
    with pytest.raises(UserError, match="2048×512 px, more than twice the longest side"):
        check(config(monitor=MonitorConfig(samples=samples)), world=1)


def test_more_sampling_steps_than_timesteps_are_refused() -> None:
    samples = SamplesConfig(prompts=["a"], steps=21)
    with pytest.raises(UserError, match=r"monitor\.samples\.steps is 21, more than the 20 timesteps"):
        check(config(monitor=MonitorConfig(samples=samples), diffusion=DiffusionConfig(timesteps=20)), world=1)
    check(config(monitor=MonitorConfig(samples=samples), diffusion=DiffusionConfig(timesteps=21)), world=1)


def test_a_file_of_prompts_that_cannot_be_read_is_found_at_the_start(tmp_path: Path) -> None:
    samples = SamplesConfig(file=str(tmp_path / "prompts.yaml"))
    with pytest.raises(UserError, match=r"monitor\.samples\.file .*prompts\.yaml cannot be read"):
        check(config(monitor=MonitorConfig(samples=samples)), world=1)
    samples.every_steps = 0
    check(config(monitor=MonitorConfig(samples=samples)), world=1)


def test_secrets_are_blacked_out_wherever_they_stand() -> None:
    plain = resolved(
        config(data=DataConfig(shards="s3://user:pass@host/data"), model=ModelConfig(path="https://t0k3n@h/x"))
    )
    assert plain["data"]["shards"] == "s3://***@host/data"
    assert plain["model"]["path"] == "https://***@h/x"
    assert plain["optim"]["lr"] == config().optim.lr
    assert plain["model"]["max_tokens"] == 225
