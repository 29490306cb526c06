"""Bad steps: what is not finite, what is far above its like, and the same verdicts whenever the run is stopped."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.health.config import HealthConfig
from finetune.health.judge import LEAST_DEVIATION, MOST_OVERFLOWS, Health, Verdict

NAN, INF = math.nan, math.inf
CONFIG = HealthConfig(window=16, warmup_steps=8, spike_z=10.0, bad_in_a_row=3)


def settled(config: HealthConfig = CONFIG, *, fp16: bool = False, deviation: float = 0.1) -> Health:
    """After 16 good steps: the logarithms of losses lie at ±deviation around that of 0.2, of norms around that of 1."""
    health = Health(config, fp16=fp16)
    for step in range(16):
        factor = math.exp(deviation * (-1) ** step)
        assert health.judge(step, 0.2 * factor, factor, phase=1) == Verdict()
    return health


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (NAN, 1.0, "loss is nan"),
        (INF, 1.0, "loss is inf"),
        (-INF, 1.0, "loss is -inf"),
        (0.2, INF, "gradient norm is inf"),
        (0.2, NAN, "gradient norm is nan"),
        (NAN, NAN, "loss is nan"),
    ],
)
def test_what_is_not_finite_is_bad_from_the_first_step_on(loss: float, norm: float, reason: str, warm: bool) -> None:
    health = settled() if warm else Health(CONFIG, fp16=False)
    assert health.judge(16 if warm else 0, loss, norm, phase=1) == Verdict(reason, streak=1)


def test_a_spike_is_told_with_its_distance() -> None:
    """The median is 0.2 and the deviation of logarithms 0.1 · 1.4826."""
    health = settled()
    assert health.judge(16, 2.0, 1.0, phase=1).reason == "loss spike: 2 against a median of 0.2 (z 15.5)"
    assert math.log(10) / 0.14826 == pytest.approx(15.5, abs=0.05)
    assert health.judge(17, 0.2, 100.0, phase=1).reason == "gradient norm spike: 100 against a median of 1 (z 31.1)"


@pytest.mark.parametrize("z", [3.0, 10.0, 25.0])
def test_the_threshold_is_that_of_the_recipe(z: float) -> None:
    factor = math.exp(z * 0.14826)
    for name in ("loss", "norm"):
        for times, bad in ((factor * 0.99, False), (factor * 1.01, True)):
            health = settled(replace(CONFIG, spike_z=z))
            loss, norm = (0.2 * times, 1.0) if name == "loss" else (0.2, times)
            assert (health.judge(16, loss, norm, phase=1).reason is not None) == bad


def test_a_fall_is_no_spike() -> None:
    assert settled().judge(16, 1e-9, 1e-9, phase=1) == Verdict()
    assert settled().judge(16, 0.0, 0.0, phase=1) == Verdict()


def test_what_hardly_varies_is_given_some_room() -> None:
    """A loss of always the same digits: 1.6 times it is noise, 1.7 times it lies 10 floors above."""
    assert math.exp(10 * LEAST_DEVIATION) == pytest.approx(1.6487, abs=1e-4)
    for times, bad in ((1.6, False), (1.7, True)):
        assert (settled(deviation=0.0).judge(16, 0.2 * times, 1.0, phase=1).reason is not None) == bad


def test_no_spikes_are_looked_for_in_the_warm_up_or_when_switched_off() -> None:
    health = Health(CONFIG, fp16=False)
    for step in range(7):
        assert health.judge(step, 0.2, 1.0, phase=1) == Verdict()
    assert health.judge(7, 200.0, 1.0, phase=1) == Verdict()
    # The warm-up's spike has been taken in, and hides no other.
    assert health.judge(8, 200.0, 1.0, phase=1).reason is not None
    assert settled(replace(CONFIG, spike_z=0.0)).judge(16, 2e9, 1e9, phase=1) == Verdict()


def test_bad_steps_are_nothing_to_compare_with() -> None:
    health = settled()
    before = health.state()
    for step in range(16, 40):
        assert health.judge(step, 5.0, 1.0, phase=1).reason is not None
    after = health.state()
    assert (after["losses"], after["norms"]) == (before["losses"], before["norms"])


def test_another_phase_begins_anew() -> None:
    health = settled()
    for step in range(16, 24):
        assert health.judge(step, 20.0, 100.0, phase=2) == Verdict()
    assert health.judge(24, 20.0 * 100, 100.0, phase=2).reason is not None


def test_a_streak_rolls_back_and_a_good_step_ends_it() -> None:
    health = settled()
    found = [health.judge(step, NAN, 1.0, phase=1) for step in range(16, 20)]
    assert [(v.streak, v.rolls_back) for v in found] == [(1, False), (2, False), (3, True), (4, True)]
    health = settled()
    verdicts = [health.judge(16 + i, loss, 1.0, phase=1) for i, loss in enumerate([NAN, NAN, 0.2, 0.2, NAN])]
    assert [(v.streak, v.ended) for v in verdicts] == [(1, 0), (2, 0), (0, 2), (0, 0), (1, 0)]
    assert not any(v.rolls_back for v in verdicts)


def test_steps_that_a_jump_tears_apart_are_not_in_a_row() -> None:
    health = settled()
    assert health.judge(16, NAN, 1.0, phase=1).streak == 1
    assert health.judge(30, NAN, 1.0, phase=1).streak == 1
    assert health.judge(31, NAN, 1.0, phase=1).streak == 2
    assert health.judge(40, 0.2, 1.0, phase=1).ended == 0


def test_an_overflow_is_ordinary_under_fp16_until_the_loss_scale_cannot_be_the_reason() -> None:
    health = settled(fp16=True)
    for step in range(16, 16 + MOST_OVERFLOWS):
        assert health.judge(step, 0.2, INF if step % 2 else NAN, phase=1) == Verdict()
    assert health.judge(48, 0.2, INF, phase=1).reason == "33 overflows in a row"
    assert health.judge(49, 0.2, 1.0, phase=1) == Verdict(ended=1)
    assert health.judge(50, 0.2, INF, phase=1) == Verdict()
    assert health.judge(51, NAN, INF, phase=1).reason == "loss is nan"
    assert health.judge(52, 20.0, INF, phase=1).reason is not None
    assert health.judge(53, 0.2, 1e6, phase=1).reason is not None


def test_noise_is_no_spike() -> None:
    """Means over a batch of losses that scatter by a factor of e, under the defaults: 20,000 steps."""
    noise = np.random.default_rng(0)
    health = Health(HealthConfig(), fp16=False)
    for step in range(20_000):
        loss, norm = (float(np.exp(noise.standard_normal(count)).mean()) for count in (64, 8))
        assert health.judge(step, loss, norm, phase=1) == Verdict()


VALUES = st.one_of(st.floats(0.15, 0.3), st.sampled_from([0.2, 0.2, 40.0, NAN, INF, 0.0]))
STEPS = st.lists(st.tuples(VALUES, VALUES, st.sampled_from([1, 1, 1, 0])), min_size=1, max_size=60)


@given(STEPS, st.booleans(), st.integers(1, 6))
def test_a_run_that_is_stopped_anywhere_judges_as_if_it_had_not_been(
    steps: list[tuple[float, float, int]], fp16: bool, warmup_steps: int
) -> None:
    """After every single step the state goes through JSON into a new judge. Phases and gaps come in at random."""
    config = HealthConfig(window=6, warmup_steps=warmup_steps, spike_z=5.0, bad_in_a_row=2)
    whole = Health(config, fp16=fp16)
    saved = json.dumps(whole.state())
    phase, at = 1, 0
    for loss, norm, ordinary in steps:
        phase, at = phase + (not ordinary), at + 1 + 3 * (not ordinary)
        resumed = Health(config, fp16=fp16)
        resumed.load(json.loads(saved))
        expected = whole.judge(at, loss, norm, phase=phase)
        assert resumed.judge(at, loss, norm, phase=phase) == expected
        saved = json.dumps(resumed.state(), allow_nan=False)
        assert saved == json.dumps(whole.state())


def test_a_window_may_be_changed_between_two_starts() -> None:
    health = settled()
    smaller = Health(replace(CONFIG, window=8), fp16=False)
    smaller.load(health.state())
    assert smaller.state()["losses"] == health.state()["losses"][-8:]
