"""Figures and events in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.runs.view.events import LONGEST, event_time, told, tone
from finetune.runs.view.figures import FIGURES, shown
from finetune.runs.view.words import SPARKS, about, counts, duration, rates, short, sparkline


@pytest.mark.parametrize(
    ("seconds", "text", "roughly"),
    [
        *((0.0123, "0.012 s", "0.012 s"), (9.96, "10 s", "10 s"), (45.2, "45 s", "45 s"), (60, "1 min", "1 min")),
        *(
            (125, "2 min 5 s", "2 min"),
            (3600, "1 h", "1 h"),
            (7379, "2 h 2 min", "2 h"),
            (86400 * 400, "400 d", "400 d"),
        ),
        (4 * 86400 + 3 * 3600 + 59, "4 d 3 h", "4 d"),
    ],
)
def test_durations(seconds: float, text: str, roughly: str) -> None:
    assert duration(seconds) == text
    assert about(seconds) == roughly


def test_numbers() -> None:
    assert (short(12345.6), short(0.123456), short(17.78)) == ("12,346", "0.123", "17.8")
    assert counts({"768x768": 3, "maximum size": 12}) == "maximum size 12, 768×768 3"
    assert counts({}) == "none"
    assert counts({str(i): i for i in range(9)}).endswith("3 more")
    assert counts(7) == "7"
    assert rates({"unet": 1e-5, "text": 1e-5}) == "1e-05"
    assert rates({"unet": 1e-5, "text": 2e-6}) == "unet 1e-05, text 2e-06"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 60))
def test_sparklines_fit_and_reach_from_bottom_to_top(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(SPARKS)
    assert line[0] in SPARKS
    if len(values) <= width and max(values) > min(values):
        assert {SPARKS[0], SPARKS[-1]} <= set(line)


def test_a_sparkline_follows_the_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == SPARKS
    assert sparkline([5.0, 5.0], 8) == SPARKS[0] * 2


def test_events_are_told_in_a_line() -> None:
    event = {"time": "2026-11-26T10:00:00+00:00", "kind": "slow rank", "step": 41237, "error": None}
    assert told({**event, "ranks": [{"rank": 1, "seconds": 5.25}]}) == "step 41,237 · ranks rank 1, seconds 5.25"
    assert event_time(event) == 1795687200.0
    assert event_time({"kind": "x"}) is event_time({"time": 3}) is event_time({"time": "noon"}) is None
    assert len(told({"reason": "long " * 500})) == LONGEST


def test_a_secret_is_blacked_out_wherever_the_line_is_cut() -> None:
    for before in range(LONGEST):
        assert "hidden" not in told({"what": "x" * before + " s3://user:hidden-secret@host/path"})


def test_tones() -> None:
    events = [{"kind": "checkpoint"}, {"kind": "failed"}, {"kind": "skipped"}, {"kind": "export", "error": "full"}, {}]
    assert [tone(event) for event in events] == ["good", "bad", "doubtful", "doubtful", "plain"]


def test_figures_have_names_of_their_own() -> None:
    figures = [figure for group in FIGURES.values() for figure in group]
    for names in ([f.key for f in figures], [f.label for f in figures], [f.metric for f in figures if f.metric]):
        assert len(set(names)) == len(names)
    assert all(figure.metric.startswith("longhaul_") for figure in figures if figure.metric)


def test_what_cannot_be_shown_is_left_out() -> None:
    assert shown({"loss": "low", "grad_norm": None, "lr": 3, "epoch": 1.0, "else": 2}) == {"data": {"epoch": "1.000"}}
