"""Phases over the steps of a run."""

from fractions import Fraction

import numpy as np
import pytest

from finetune.data.layout import Layout, SourceSamples
from finetune.data.plan import Plan
from finetune.errors import UserError
from finetune.optim.config import OptimConfig
from finetune.phases import PhaseConfig, Phases, trains_text_encoder

SIZES = np.array([[64, 64]])
SOURCE = SourceSamples(0, np.array([0, 1000]), np.zeros(1000, dtype=np.uint16), Fraction(1))
LAYOUT = Layout([SOURCE], SIZES, window_shards=1, seed=0)
PLAN = Plan([LAYOUT], SIZES, micro_batch=4, global_batch=16, seed=0)  # 62.5 steps an epoch
OPTIM = OptimConfig(lr=4e-6, text_encoder_lr=1e-6, schedule="linear")


def test_the_recipe_s_two_phases() -> None:
    phases = Phases([PhaseConfig(epochs=10), PhaseConfig(epochs=6, text_encoder_lr=1e-7)], OPTIM, PLAN)
    assert phases.total_steps == 1000
    assert (phases.number(624), phases.number(625)) == (1, 2)
    assert phases.rates(0) == pytest.approx({"unet": 4e-6, "text_encoder": 1e-6})
    # The schedule runs on over the border; only the base rate changes.
    assert phases.rates(500) == pytest.approx({"unet": 2e-6, "text_encoder": 5e-7})
    assert phases.rates(750) == pytest.approx({"unet": 1e-6, "text_encoder": 2.5e-8})


def test_lengths_in_steps_and_epochs_mix() -> None:
    phases = Phases([PhaseConfig(steps=7), PhaseConfig(epochs=2), PhaseConfig(steps=3, lr=1.0)], OPTIM, PLAN)
    assert phases.total_steps == 7 + 125 + 3
    assert [phases.number(step) for step in (0, 6, 7, 131, 132, 134)] == [1, 1, 2, 2, 3, 3]
    assert phases.rates(132)["unet"] == pytest.approx(3 / 135)


def test_the_text_encoder_trains_if_any_phase_gives_it_a_rate() -> None:
    frozen = OptimConfig(text_encoder_lr=0.0)
    assert not trains_text_encoder([PhaseConfig(steps=1)], frozen)
    assert trains_text_encoder([PhaseConfig(steps=1), PhaseConfig(steps=1, text_encoder_lr=1e-6)], frozen)
    assert not trains_text_encoder([PhaseConfig(steps=1, text_encoder_lr=0.0)], OPTIM)


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "epochs": 1.0}, {"steps": 0}, {"epochs": -1.0}])
def test_a_phase_needs_one_length(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="a phase"):
        PhaseConfig(**settings)  # type: ignore[arg-type]


def test_phases_in_steps_last_as_many_however_the_data_grows() -> None:
    more = SourceSamples(0, np.array([0, 1000, 4000]), np.zeros(4000, dtype=np.uint16), Fraction(1))
    grown = Layout([more], SIZES, window_shards=1, seed=0, first_epoch=1)
    plan = Plan([LAYOUT, grown], SIZES, micro_batch=4, global_batch=100, seed=0)  # 10 steps, then 40 an epoch
    for lengths in ([10, 10], [5, 20, 30], [50, 1]):
        phases = Phases([PhaseConfig(steps=length) for length in lengths], OPTIM, plan)
        assert phases.total_steps == sum(lengths)
    assert Phases([PhaseConfig(epochs=1), PhaseConfig(steps=40)], OPTIM, plan).total_steps == 50
    assert Phases([PhaseConfig(epochs=2), PhaseConfig(steps=10)], OPTIM, plan).total_steps == 60


@pytest.mark.parametrize("repeats", [Fraction(1, 2), Fraction(7, 3), Fraction(333, 1000)])
def test_phases_in_steps_last_as_many_with_any_repeats(repeats: Fraction) -> None:
    source = SourceSamples(0, np.array([0, 900]), np.zeros(900, dtype=np.uint16), repeats)
    plan = Plan([Layout([source], SIZES, window_shards=1, seed=0)], SIZES, micro_batch=4, global_batch=16, seed=0)
    for first, second in ((10, 50), (33, 7), (1, 200)):
        assert Phases([PhaseConfig(steps=first), PhaseConfig(steps=second)], OPTIM, plan).total_steps == first + second
