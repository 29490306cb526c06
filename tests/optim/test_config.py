"""What a recipe may say about the optimizer."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.errors import UserError
from finetune.optim.config import OPTIMIZERS, UNSHARDABLE, EmaConfig, OptimConfig, ScheduleConfig

CONSTANT = ScheduleConfig("constant")
ONE_RATE = {"lr": 1.0, "text_encoder_lr": 1.0}


def test_recipes_reach_all_settings_by_key() -> None:
    lines = ["lr=1e-4", "block_factors={IN00: 0, 'OUT*': 0.5}", "betas=[0.9, 0.95]", "train=['unet.*']"]
    lines += ["options={nested: [null, 1e-3]}", "schedule.name=cosine", "schedule.cycles=2"]
    lines += ["text_encoder_schedule={name: constant}"]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OptimConfig), OmegaConf.from_dotlist(lines)))
    assert isinstance(config, OptimConfig)
    assert (config.block_factors, config.options) == ({"IN00": 0.0, "OUT*": 0.5}, {"nested": [None, 1e-3]})
    assert (config.schedule.cycles, config.text_encoder_schedule) == (2, CONSTANT)
    assert config.arguments == {"betas": (0.9, 0.95)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_choice_of_optim_is_whole(name: str) -> None:
    chosen = OmegaConf.load(Path(__file__).parents[2] / "conf" / "optim" / f"{name}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OptimConfig), chosen))
    assert isinstance(config, OptimConfig)
    assert config.name == name


def test_the_second_text_encoder_follows_the_first_unless_it_has_a_rate() -> None:
    assert OptimConfig(text_encoder_lr=3e-6).second_text_encoder_lr == 3e-6
    assert OptimConfig(text_encoder_lr=3e-6, text_encoder_2_lr=0.0).second_text_encoder_lr == 0.0


def test_what_cannot_be_sharded_is_an_optimizer_there_is() -> None:
    assert set(UNSHARDABLE) == {"adafactor", "prodigy", "dadapt_adam"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam"])
def test_estimators_take_one_rate_and_may_freeze(name: str) -> None:
    OptimConfig(name, **ONE_RATE)
    OptimConfig(name, lr=0.5, text_encoder_lr=0.0, block_factors={"IN00": 0.0, "*": 1.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sophia"}, r"optim\.name is 'sophia': use one of adamw, .*, schedule_free_adamw, module:Class"),
        ({"lr": 0.0}, r"optim\.lr is 0\.0"),
        ({"lr": float("nan")}, r"optim\.lr is nan"),
        ({"text_encoder_lr": -1e-6}, r"optim\.text_encoder_lr -1e-06"),
        ({"text_encoder_2_lr": -1e-6}, r"optim\.text_encoder_2_lr -1e-06"),
        ({"betas": [0.9]}, r"optim\.betas is \[0\.9\]: give two numbers"),
        ({"betas": [0.9, 1.0]}, r"optim\.betas is \[0\.9, 1\.0\]: give two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, r"optim\.eps is -1e-08: use 0 or more"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1: use 0 or more"),
        ({"block_factors": {"MID": -1.0}}, r"optim\.block_factors is \{'MID': -1\.0\}: use factors of 0 or more"),
        ({"train": []}, r"optim\.train is empty"),
        ({"max_grad_norm": 0.0}, r"optim\.max_grad_norm is 0\.0"),
        ({"name": "sgd", "betas": [0.9, 0.99]}, r"optim\.betas is given but sgd takes weight_decay only"),
        ({"name": "lion", "eps": 1e-8}, r"optim\.eps is given but lion takes betas, weight_decay only"),
        ({"name": "adafactor", "eps": 1e-8}, r"optim\.eps is given but adafactor takes weight_decay only"),
        ({"options": {"eps": 1e-8}}, r"optim\.options\.eps is given: it has a place of its own, optim\.eps"),
        ({"options": {"lr": 1e-8}}, r"optim\.options\.lr is given"),
        ({"name": "a:B", "eps": 1.0, "options": {"eps": 1.0}}, r"optim\.options\.eps is given: it has a place"),
        ({"name": "prodigy", "lr": 1.0}, r"optim\.name is prodigy, which estimates one rate for all that trains"),
        ({"name": "prodigy", **ONE_RATE, "text_encoder_2_lr": 0.5}, "estimates one rate for all"),
        ({"name": "dadapt_adam", **ONE_RATE, "block_factors": {"MID": 0.5}}, "estimates one rate for all"),
        ({"name": "prodigy", **ONE_RATE, "text_encoder_schedule": CONSTANT}, "estimates one rate for all"),
        ({"name": "prodigy", "lr": 4e-6, "text_encoder_lr": 0.0}, r"optim\.lr is 4e-06 but prodigy multiplies .* 1\.0"),
        ({"name": "schedule_free_adamw"}, r"takes the place of a decay: set optim\.schedule\.name=constant"),
        (
            {"name": "schedule_free_adamw", "schedule": CONSTANT, "text_encoder_schedule": ScheduleConfig("linear")},
            r"takes the place of a decay",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"ema\.decay is 1\.0: use a number from 0 to below 1"),
        ({"every_steps": 0}, r"ema\.every_steps is 0"),
        ({"device": "cuda"}, r"ema\.device is 'cuda': use one of cpu, model"),
    ],
)
def test_averages_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EmaConfig(**settings)
