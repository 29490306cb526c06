"""Learning-rate factors."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.errors import UserError
from finetune.optim.config import SCHEDULES, ScheduleConfig, parse_steps
from finetune.optim.schedules import SHAPES, rate_factor

LR = 1e-5
SETTINGS = {
    "constant": [{}],
    "linear": [{"final_factor": 0.1}],
    "cosine": [{"final_factor": 0.1, "cycles": 3}],
    "polynomial": [{"final_factor": 0.1, "power": 0.5}, {"power": 3.0}],
    "wsd": [{"final_factor": 0.1, "decay_share": 0.3, "decay": "linear"}, {"decay_share": 0.3}, {"decay_share": 1.0}],
    "steps": [{"steps": "1e-5:30, 2e-6:600"}],
}
EVERY = [(name, settings) for name, choices in SETTINGS.items() for settings in choices]


def factors(total: int, **settings: object) -> list[float]:
    config = ScheduleConfig(**settings)  # type: ignore[arg-type]
    return [rate_factor(config, LR, step, total) for step in range(total + 1)]


def test_every_schedule_that_a_recipe_may_name_is_there() -> None:
    assert {*SHAPES, "steps"} == set(SCHEDULES) == set(SETTINGS)


def test_linear_falls_evenly_to_zero() -> None:
    assert factors(10, name="linear") == pytest.approx([1 - i / 10 for i in range(11)], abs=1e-15)


def test_linear_and_constant_are_the_numbers_that_golden_losses_stand_on() -> None:
    assert factors(977, name="linear")[:-1] == [1.0 - step / 977 for step in range(977)]
    assert set(factors(977, name="constant")) == {1.0}


def test_beyond_the_end_the_factor_stays_at_its_last_value() -> None:
    assert rate_factor(ScheduleConfig(final_factor=0.25), LR, 1000, 10) == 0.25


def test_cosine_is_half_a_wave_and_restarts() -> None:
    """Quarters of two waves over 80 steps: 1, cos²(pi/8), 1/2, sin²(pi/8)."""
    found = factors(80, name="cosine", cycles=2)[:80:10]
    wave = [1.0, math.cos(math.pi / 8) ** 2, 0.5, math.sin(math.pi / 8) ** 2]
    assert found == pytest.approx(wave * 2, abs=1e-15)


@example(total=4900, cycles=49, cycle=1)  # 1 / 49 * 49 is below 1 in floating point
@given(total=st.integers(1000, 10**7), cycles=st.integers(1, 100), cycle=st.integers(0, 99))
def test_cosine_restarts_at_the_step_that_its_share_falls_on(total: int, cycles: int, cycle: int) -> None:
    config = ScheduleConfig(name="cosine", cycles=cycles)
    start = -(-total * (cycle % cycles) // cycles)  # the first whole step at or after the restart
    assert rate_factor(config, LR, start, total) >= 0.5 * (1 + math.cos(math.pi * min(1.0, cycles / total))) - 1e-9
    if start:
        assert rate_factor(config, LR, start - 1, total) < rate_factor(config, LR, start, total)


def test_every_cycle_of_cosine_is_the_first_one_to_the_bit() -> None:
    found = factors(4900, name="cosine", cycles=49)[:-1]
    assert found == found[:100] * 49


def test_polynomial_is_a_power_of_what_is_left() -> None:
    assert factors(4, name="polynomial", power=3.0) == [1.0, 27 / 64, 1 / 8, 1 / 64, 0.0]


def test_wsd_holds_and_then_decays_over_the_last_share() -> None:
    linear = factors(10, name="wsd", decay_share=0.4, decay="linear", final_factor=0.2)
    assert linear == pytest.approx([1.0] * 7 + [0.8, 0.6, 0.4, 0.2])
    root = factors(10, name="wsd", decay_share=0.4)
    assert root == pytest.approx([1.0] * 7 + [1 - math.sqrt(i / 4) for i in (1, 2, 3, 4)])


def test_a_list_of_rates_gives_each_until_its_step_and_the_last_to_the_end() -> None:
    config = ScheduleConfig(name="steps", steps="5e-6:12000, 5e-7:30000")
    found = {step: LR * rate_factor(config, LR, step, 40_000) for step in (0, 11_999, 12_000, 29_999, 30_000, 39_999)}
    assert found == pytest.approx({0: 5e-6, 11_999: 5e-6, 12_000: 5e-7, 29_999: 5e-7, 30_000: 5e-7, 39_999: 5e-7})
    assert parse_steps("5e-6:12000,5e-7") == [(5e-6, 12_000), (5e-7, math.inf)]
    assert parse_steps("1") == [(1.0, math.inf)]


@pytest.mark.parametrize(("name", "settings"), EVERY)
@given(total=st.integers(1, 10**6), warmup=st.integers(0, 2000), share=st.floats(0, 1))
def test_factors_stay_within_the_schedule_and_warm_up_evenly(
    name: str, settings: dict[str, object], total: int, warmup: int, share: float
) -> None:
    """Bounds; during the warm-up (n + 1) / (w + 1) of the schedule without one, after it the same, to the bit."""
    step = min(total - 1, int(share * total))
    warm = rate_factor(ScheduleConfig(name, warmup, **settings), LR, step, total)  # type: ignore[arg-type]
    plain = rate_factor(ScheduleConfig(name, **settings), LR, step, total)  # type: ignore[arg-type]
    assert settings.get("final_factor", 0.0) - 1e-12 <= plain <= 1.0  # type: ignore[operator]
    assert plain > 0.0
    assert warm == (pytest.approx(plain * (step + 1) / (warmup + 1)) if step < warmup else plain)


@given(warmup=st.integers(1, 10_000))
def test_the_rise_is_even_and_ends_without_a_jump(warmup: int) -> None:
    config = ScheduleConfig("constant", warmup)
    first, last, after = (rate_factor(config, LR, step, 10**6) for step in (0, warmup - 1, warmup))
    assert first == pytest.approx(1 / (warmup + 1))
    assert after == 1.0
    assert after - last == pytest.approx(first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sine"}, r"schedule\.name is 'sine': use one of constant, linear, cosine, polynomial, wsd, steps"),
        ({"name": "wsd", "decay": "cosine"}, r"schedule\.decay is 'cosine': use one of linear, sqrt"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps is -1: use 0 or more"),
        ({"name": "unet", "warmup_steps": 5}, r"schedule\.warmup_steps is 5 but unet has none: leave it out"),
        ({"name": "unet", "power": 3.0}, r"schedule\.power is 3\.0 but unet has none: leave it out"),
        ({"final_factor": 1.5}, r"schedule\.final_factor is 1\.5"),
        ({"name": "cosine", "cycles": 0}, r"schedule\.cycles is 0"),
        ({"name": "polynomial", "power": 0.0}, r"schedule\.power is 0\.0"),
        ({"name": "polynomial", "power": math.nan}, r"schedule\.power is nan: use a finite number"),
        ({"name": "wsd", "decay_share": 0.0}, r"schedule\.decay_share is 0\.0"),
        ({"name": "steps"}, r"schedule\.steps is '': write it as in \"5e-6:12000, 5e-7:30000\""),
        ({"name": "steps", "steps": "1e-5, 1e-6:30"}, r"schedule\.steps is '1e-5, 1e-6:30': write it"),
        ({"name": "steps", "steps": "1e-5:30, 0:60"}, r"its rates must be above 0"),
        ({"name": "steps", "steps": "nan"}, r"its rates must be above 0"),
        ({"name": "steps", "steps": "1e-5:30, 1e-6:30"}, r"its steps must rise"),
        ({"name": "steps", "steps": "1e-5:0, 1e-6:30"}, r"its steps must rise, from 1"),
        ({"name": "linear", "cycles": 2}, r"schedule\.cycles is 2 but linear has none: leave it out"),
        ({"name": "constant", "final_factor": 0.5}, r"schedule\.final_factor is 0\.5 but constant has none"),
        ({"name": "linear", "steps": "1e-5"}, r"schedule\.steps is '1e-5' but linear has none"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**settings)  # type: ignore[arg-type]
