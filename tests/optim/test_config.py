"""What a recipe may say about the optimizer."""

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.errors import UserError
from finetune.optim.config import OPTIMIZERS, UNSHARDABLE, EmaConfig, OptimConfig, ScheduleConfig
from finetune.overrides import overridden
from finetune.recipes import compose_recipe, recipe_folder

ROOT = Path(__file__).parents[2]
CONSTANT = ScheduleConfig("constant")
ONE_RATE = {"lr": 1.0, "text_encoder_lr": 1.0}


def test_recipes_reach_all_settings_by_key() -> None:
    lines = ["lr=1e-4", "block_factors={IN00: 0, 'OUT*': 0.5}", "betas=[0.9, 0.95]", "train=['unet.*']"]
    lines += ["options={nested: [null, 1e-3]}", "schedule.name=cosine", "schedule.cycles=2"]
    lines += ["text_encoder_schedule={name: constant}"]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OptimConfig), OmegaConf.from_dotlist(lines)))
    assert isinstance(config, OptimConfig)
    assert (config.block_factors, config.options) == ({"IN00": 0.0, "OUT*": 0.5}, {"nested": [None, 1e-3]})
    assert (config.schedule.cycles, config.text_schedule) == (2, CONSTANT)
    assert config.arguments == {"betas": (0.9, 0.95)}


@pytest.mark.parametrize(
    "override", ["optim.text_encoder_schedule={name: constant}", "optim.text_encoder_schedule.name=constant"]
)
def test_text_encoders_get_a_schedule_on_the_command_line(override: str) -> None:
    optim = compose_recipe("hyperfusion", recipe_folder("hyperfusion"), ["data.shards=/nowhere", override]).optim
    assert (optim.schedule.name, optim.text_schedule) == ("linear", CONSTANT)


def test_a_phase_may_give_text_encoders_a_schedule_and_take_it_away() -> None:
    own = overridden(OptimConfig(), {"text_encoder_schedule": {"name": "constant"}}, "phase 1: optim", "optim")
    assert own.text_schedule == CONSTANT
    again = overridden(own, {"text_encoder_schedule": {"name": "unet"}}, "phase 2: optim", "optim")
    assert again.text_schedule is again.schedule


def test_text_encoders_follow_the_unet_s_schedule_by_default() -> None:
    config = OptimConfig(schedule=ScheduleConfig("cosine", cycles=3))
    assert config.text_schedule is config.schedule


def test_blocks_get_factors_on_the_command_line() -> None:
    """As docs/optimizers.md has it."""
    override = "optim.block_factors={*: 0.5, OUT*: 1, TIME: 0}"
    assert f"'{override}'" in (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    optim = compose_recipe("hyperfusion", recipe_folder("hyperfusion"), ["data.shards=/nowhere", override]).optim
    assert list(optim.block_factors.items()) == [("*", 0.5), ("OUT*", 1.0), ("TIME", 0.0)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_choice_of_optim_is_whole(name: str) -> None:
    chosen = OmegaConf.load(ROOT / "conf" / "optim" / f"{name}.yaml")
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
        ({"lr": nan}, r"optim\.lr is nan: use a finite number"),
        ({"lr": inf}, r"optim\.lr is inf: use a finite number"),
        ({"name": ".foo:Bar"}, r"optim\.name is '\.foo:Bar': use one of"),
        ({"text_encoder_lr": -1e-6}, r"optim\.text_encoder_lr is -1e-06: use 0 or more"),
        ({"text_encoder_2_lr": -1e-6}, r"optim\.text_encoder_2_lr is -1e-06: use 0 or more"),
        ({"text_encoder_2_lr": nan}, r"optim\.text_encoder_2_lr is nan: use a finite number"),
        ({"schedule": ScheduleConfig("unet")}, r"optim\.schedule\.name is 'unet': use one of constant, .*, steps$"),
        ({"betas": [0.9]}, r"optim\.betas is \[0\.9\]: give two numbers"),
        ({"betas": [0.9, 1.0]}, r"optim\.betas is \[0\.9, 1\.0\]: give two numbers in \[0, 1\)"),
        ({"eps": 0.0}, r"optim\.eps is 0\.0: use a number above 0"),
        ({"name": "a:B", "eps": 0.0}, r"optim\.eps is 0\.0: use a number above 0"),
        ({"eps": inf}, r"optim\.eps is inf: use a finite number"),
        ({"weight_decay": nan}, r"optim\.weight_decay is nan: use a finite number"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1: use 0 or more"),
        ({"block_factors": {"MID": -1.0}}, r"optim\.block_factors\.MID is -1\.0: use 0 or more"),
        ({"block_factors": {"OUT*": inf}}, r"optim\.block_factors\.OUT\* is inf: use a finite number"),
        ({"train": []}, r"optim\.train is empty"),
        ({"max_grad_norm": 0.0}, r"optim\.max_grad_norm is 0\.0"),
        ({"max_grad_norm": nan}, r"optim\.max_grad_norm is nan: use a finite number"),
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
