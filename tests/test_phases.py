"""Phases over the steps of a run, and what each of them changes."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from finetune.data.config import BucketsConfig
from finetune.data.journal import Setting
from finetune.data.layout import Layout, SourceSamples
from finetune.data.plan import Chapter, Plan
from finetune.data.shapes import Shape
from finetune.errors import UserError
from finetune.optim.config import OptimConfig
from finetune.phases import Phase, PhaseConfig, Phases, shapes, unfold

SIZES = np.array([[64, 64]])
SOURCE = SourceSamples(0, np.array([0, 1000]), np.zeros(1000, dtype=np.uint16), Fraction(1))
LAYOUT = Layout([SOURCE], SIZES, window_shards=1, seed=0)
PLAN = Plan([Chapter(LAYOUT, 4)], SIZES, global_batch=16, seed=0)  # 62.5 steps an epoch
OPTIM = OptimConfig(lr=4e-6, text_encoder_lr=1e-6, betas=[0.9, 0.99])
BUCKETS = BucketsConfig(768, 1024)


def unfolded(*configs: PhaseConfig) -> list[Phase]:
    return unfold(configs, OPTIM, BUCKETS, micro_batch=4)


def lengths(*until: str, plan: Plan = PLAN) -> Phases:
    return Phases(unfolded(*(PhaseConfig(place) for place in until)), plan)


def test_what_a_phase_changes_holds_until_it_is_changed_again() -> None:
    first, second, third = unfolded(
        PhaseConfig("10 epochs"),
        PhaseConfig("15 epochs", {"text_encoder_lr": 1e-7}, {"resolution_px": 1024, "max_side_px": 1536}, 2),
        PhaseConfig("16 epochs", {"name": "adopt"}),
    )
    assert (first.optim, first.buckets, first.micro_batch) == (OPTIM, BUCKETS, 4)
    assert (second.optim.lr, second.optim.text_encoder_lr, second.optim.name) == (4e-6, 1e-7, "adamw8bit")
    assert (third.optim.lr, third.optim.text_encoder_lr, third.optim.name) == (4e-6, 1e-7, "adopt")
    assert second.buckets == third.buckets == BucketsConfig(1024, 1536)
    assert (second.micro_batch, third.micro_batch) == (2, 2)
    assert shapes([first, second, third]) == (Shape(0, BUCKETS, 4), Shape(10, BucketsConfig(1024, 1536), 2))


def test_another_optimizer_begins_with_its_own_defaults() -> None:
    phases = unfolded(PhaseConfig("1 epoch"), PhaseConfig("2 epochs", {"name": "adopt"}))
    assert (phases[0].optim.betas, phases[1].optim.betas) == ([0.9, 0.99], None)
    given = unfolded(PhaseConfig("1 epoch"), PhaseConfig("2 epochs", {"name": "adopt", "betas": [0.8, 0.9]}))
    assert given[1].optim.betas == [0.8, 0.9]
    same = unfolded(PhaseConfig("1 epoch"), PhaseConfig("2 epochs", {"name": "adamw8bit"}))
    assert same[1].optim.betas == [0.9, 0.99]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"optim": {"name": "lion"}}, "the optimizer"),
        ({"optim": {"weight_decay": 0.2}}, "the optimizer"),
        ({"buckets": {"step_px": 32}}, "buckets"),
        ({"micro_batch": 2}, "micro_batch"),
    ],
)
@pytest.mark.parametrize("border", ["100 steps", "1.5 epochs"])
def test_what_needs_an_epoch_s_border_is_refused_elsewhere(changes: dict[str, Any], what: str, border: str) -> None:
    with pytest.raises(UserError, match=f"phase 2 changes {what}.*phase 1 ends at {border}"):
        unfolded(PhaseConfig(border), PhaseConfig("9 epochs", **changes))
    assert len(unfolded(PhaseConfig("1 epochs"), PhaseConfig("9 epochs", **changes))) == 2


def test_rates_and_freezing_change_at_any_step() -> None:
    changes = {"lr": 1e-6, "text_encoder_lr": 0.0, "train": ["unet.*attn2*"], "block_factors": {"MID": 0.5}}
    assert len(unfolded(PhaseConfig("100 steps"), PhaseConfig("101 steps", changes))) == 2


def test_a_rate_that_is_set_holds_until_it_is_set_again_or_a_later_phase_gives_it() -> None:
    configs = [PhaseConfig("10 steps"), PhaseConfig("20 steps", {"text_encoder_lr": 1e-7}), PhaseConfig("30 steps")]
    settings = [
        Setting(3, "optim.lr", 1e-5),
        Setting(4, "optim.text_encoder_lr", 2e-6),
        Setting(12, "optim.lr", 2e-5),
        Setting(14, "optim.text_encoder_lr", 3e-7),
        Setting(25, "optim.lr", None),
        Setting(26, "monitor.samples.every_steps", 7),
    ]
    laid = Phases(unfolded(*configs), PLAN, settings)

    def rates(step: int) -> tuple[float, float]:
        return laid.at(step).optim.lr, laid.at(step).optim.text_encoder_lr

    assert [rates(step) for step in (2, 3, 4, 9)] == [(4e-6, 1e-6), (1e-5, 1e-6), (1e-5, 2e-6), (1e-5, 2e-6)]
    assert [rates(step) for step in (10, 12, 14)] == [(1e-5, 1e-7), (2e-5, 1e-7), (2e-5, 3e-7)]
    assert [rates(step) for step in (20, 25, 29)] == [(2e-5, 3e-7), (4e-6, 3e-7), (4e-6, 3e-7)]


def test_mistakes_name_the_phase_and_the_setting() -> None:
    with pytest.raises(UserError, match=r"phase 2: optim\.text_lr: .* it takes the settings of optim"):
        unfolded(PhaseConfig("1 epochs"), PhaseConfig("2 epochs", {"text_lr": 1.0}))
    with pytest.raises(UserError, match=r"phase 1: buckets: .*data\.buckets\.step_px is 7"):
        unfolded(PhaseConfig("1 epochs", buckets={"step_px": 7}))


@pytest.mark.parametrize("until", ["", "10", "epochs", "0 epochs", "-1 steps", "1.5 steps", "3 days", "1e3 steps"])
def test_until_is_a_number_of_epochs_or_steps(until: str) -> None:
    with pytest.raises(UserError, match="a phase's until is"):
        PhaseConfig(until)


def test_ends_in_steps_and_epochs_mix() -> None:
    phases = lengths("7 steps", "2 epochs", "128 steps")
    assert phases.total_steps == 128
    assert [phases.number(step) for step in (0, 6, 7, 124, 125, 127, 128)] == [1, 1, 2, 2, 3, 3, 3]
    assert [phases.span(number) for number in (1, 2, 3)] == [range(7), range(7, 125), range(125, 128)]


def test_a_phase_must_not_end_before_it_begins() -> None:
    with pytest.raises(UserError, match=r"phase 2 is to end at 1 epochs \(step 63\).*ends at step 100"):
        lengths("100 steps", "1 epoch")


def test_ends_in_epochs_move_with_the_data_and_those_in_steps_do_not() -> None:
    more = SourceSamples(0, np.array([0, 1000, 4000]), np.zeros(4000, dtype=np.uint16), Fraction(1))
    grown = Layout([more], SIZES, window_shards=1, seed=0, first_epoch=1)
    plan = Plan([Chapter(LAYOUT, 4), Chapter(grown, 4)], SIZES, global_batch=100, seed=0)  # 10 steps, then 40 an epoch
    assert lengths("5 steps", "25 steps", plan=plan).total_steps == 25
    assert [lengths(f"{n} epochs", plan=plan).total_steps for n in (1, 2, 3)] == [10, 50, 90]


@pytest.mark.parametrize("repeats", [Fraction(1, 2), Fraction(7, 3), Fraction(333, 1000)])
def test_an_end_in_epochs_holds_all_of_their_draws(repeats: Fraction) -> None:
    source = SourceSamples(0, np.array([0, 900]), np.zeros(900, dtype=np.uint16), repeats)
    plan = Plan([Chapter(Layout([source], SIZES, window_shards=1, seed=0), 4)], SIZES, global_batch=16, seed=0)
    for epochs in (1, 2, 5):
        assert 0 <= lengths(f"{epochs} epochs", plan=plan).total_steps * 16 - plan.draws(epochs) < 16
