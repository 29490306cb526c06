"""What a recipe may say about health."""

import math

import pytest
from omegaconf import DictConfig, OmegaConf

from finetune.config import Config, typed
from finetune.errors import UserError
from finetune.health.config import HealthConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 300}, r"health\.warmup_steps is 300 and health\.window 256: use at least 1"),
        ({"warmup_steps": 0}, r"health\.warmup_steps is 0"),
        ({"window": 0, "warmup_steps": 0}, r"health\.window 0"),
        ({"spike_z": -1.0}, r"health\.spike_z is -1\.0: use 0 or more"),
        ({"spike_z": math.nan}, r"health\.spike_z is nan: use a finite number"),
        ({"bad_in_a_row": 0}, r"health\.bad_in_a_row is 0: use at least 1"),
        ({"max_rollbacks": -1}, r"health\.max_rollbacks is -1: use 0 or more"),
        ({"quarantine_after": -1}, r"health\.quarantine_after is -1: use 0 or more"),
        ({"stall_s": -5.0}, r"health\.stall_s is -5\.0: use 0 or more"),
        ({"slow_factor": 0.9}, r"health\.slow_factor is 0\.9: use a number above 1, or 0"),
        ({"slow_factor": 1.0}, r"health\.slow_factor is 1\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HealthConfig(**settings)  # type: ignore[arg-type]


def test_0_switches_off() -> None:
    HealthConfig(spike_z=0.0, max_rollbacks=0, quarantine_after=0, stall_s=0.0, slow_factor=0.0)


def test_it_is_part_of_a_recipe() -> None:
    given = {
        "run": {"name": "test"},
        "phases": [{"until": "1 epochs"}],
        "model": {"path": "m"},
        "data": {"shards": "s"},
    }
    for health in ({"spike_z": 6.0, "bad_in_a_row": 4}, {"stall_s": 30.0, "quarantine_after": 0}):
        recipe = OmegaConf.merge(OmegaConf.structured(Config), {**given, "data": {"shards": "s"}, "health": health})
        assert isinstance(recipe, DictConfig)
        assert typed(recipe).health == HealthConfig(**health)  # type: ignore[arg-type]
