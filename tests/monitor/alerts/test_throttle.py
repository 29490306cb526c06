"""Nothing is told too often, and nothing is lost."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.alerts.rules import Alert
from finetune.monitor.alerts.throttle import HOUR_S, Throttle

KINDS = ("skipped", "slow rank", "started", "resumed", "data outage", "failed")
AGAIN_S, PER_HOUR = 1800.0, 3
arrivals = st.lists(st.tuples(st.floats(0.0, 1500.0), st.sampled_from(KINDS)), max_size=60)


def of(kind: str, cause: str = "") -> Alert:
    return Alert(kind, "warning", kind, "text.", cause)


def passed_through(throttle: Throttle, waits: list[tuple[float, str]]) -> list[tuple[float, Alert]]:
    """What is sent of alerts that come after given waits, summaries included."""
    now, sent = 1e9, []
    for wait_s, kind in waits:
        now += wait_s
        sent += [(now, alert) for alert in (throttle.take(of(kind), now), throttle.summary(now)) if alert]
    return sent


@given(arrivals)
def test_no_hour_has_more_than_it_may(waits: list[tuple[float, str]]) -> None:
    sent = passed_through(Throttle(AGAIN_S, PER_HOUR), waits)
    for severe in (False, True):
        times = [at for at, alert in sent if alert.severe == severe]
        assert all(later - first >= HOUR_S for first, later in zip(times, times[PER_HOUR:], strict=False))


@given(arrivals)
def test_what_repeats_itself_is_not_told_too_soon(waits: list[tuple[float, str]]) -> None:
    sent = passed_through(Throttle(AGAIN_S, 1000), waits)
    for kind in ("skipped", "slow rank"):
        times = [at for at, alert in sent if alert.kind == kind]
        assert all(later - first >= AGAIN_S for first, later in pairwise(times))


@given(arrivals)
def test_what_has_changed_or_ended_is_always_told_where_there_is_room(waits: list[tuple[float, str]]) -> None:
    sent = passed_through(Throttle(AGAIN_S, 1000), waits)
    for kind in ("started", "resumed", "data outage", "failed"):
        assert sum(alert.kind == kind for _, alert in sent) == sum(one == kind for _, one in waits)


@given(arrivals)
def test_every_alert_is_sent_counted_or_still_held(waits: list[tuple[float, str]]) -> None:
    throttle = Throttle(AGAIN_S, PER_HOUR)
    sent = passed_through(throttle, waits)
    told = sum(alert.kind in KINDS for _, alert in sent)
    for _, alert in sent:
        told += sum(int(count) for count in re.findall(r"come (\d+) more", alert.text))
        told += sum(int(count) for count in re.findall(r"(\d+) × ", alert.text))
    left = sum(throttle.memory.held.values()) + sum(said.meanwhile for said in throttle.memory.said.values())
    assert told + left == len(waits)


@given(arrivals, st.integers(0, 60))
def test_what_is_decided_follows_from_what_is_remembered(waits: list[tuple[float, str]], cut: int) -> None:
    whole = [alert for _, alert in passed_through(Throttle(AGAIN_S, PER_HOUR), waits)]
    throttle, parts, now = Throttle(AGAIN_S, PER_HOUR), [], 1e9
    for i, (wait_s, kind) in enumerate(waits):
        if i == cut:
            throttle = Throttle(AGAIN_S, PER_HOUR, throttle.memory)
        now += wait_s
        parts += filter(None, (throttle.take(of(kind), now), throttle.summary(now)))
    assert parts == whole


def test_the_next_one_says_how_often_it_came() -> None:
    throttle = Throttle(AGAIN_S, 10)
    assert [throttle.take(of("skipped", "spike"), 1e9 + i) is None for i in range(4)] == [False, True, True, True]
    assert throttle.take(of("skipped", "not a number"), 1e9 + 5)
    again = throttle.take(of("skipped", "spike"), 1e9 + AGAIN_S)
    assert again
    assert again.text == "text. It has come 3 more times since 09 Sep 01:46 UTC."


def test_what_is_severe_passes_amid_noise_and_tells_what_was_held_back() -> None:
    throttle = Throttle(0.0, 2)
    assert [throttle.take(of("skipped"), 1e9) is None for _ in range(7)] == [False] * 2 + [True] * 5
    assert throttle.summary(1e9) is None
    failed = throttle.take(of("failed"), 1e9)
    assert failed
    assert failed.text == "text. Held back until now: 5 × skipped."
    assert throttle.summary(1e9 + HOUR_S) is None


def test_what_was_held_back_is_summed_up_once_there_is_room() -> None:
    throttle = Throttle(0.0, 2)
    for _ in range(5):
        throttle.take(of("skipped"), 1e9)
    summary = throttle.summary(1e9 + HOUR_S)
    assert summary
    assert (summary.title, summary.text) == ("3 more alerts", "Held back until now: 3 × skipped.")
    assert throttle.summary(1e9 + 2 * HOUR_S) is None


def test_a_clock_that_was_set_back_silences_nobody() -> None:
    throttle = Throttle(AGAIN_S, 1)
    assert throttle.take(of("skipped"), 1e9)
    assert throttle.take(of("skipped"), 1e9 - 86400)
