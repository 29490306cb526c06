"""Curves as coordinates."""

from hypothesis import given
from hypothesis import strategies as st

from finetune.runs.view.curves import Point
from finetune.runs.web.chart import BARS, BOTTOM, LEFT, RIGHT, TOP, WIDTH, bars, chart, smoothed, ticks

values = st.floats(-1e6, 1e6, allow_nan=False)
points = st.lists(values, min_size=1, max_size=60).map(
    lambda rows: [Point(i * 10.0, value, value - abs(value) / 2, value + 1) for i, value in enumerate(rows)]
)


def coordinates(text: str) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in text.split())
    return [(float(x), float(y)) for x, y in pairs]


@given(st.dictionaries(st.sampled_from(["a", "b"]), points, min_size=1))
def test_curves_stay_in_the_picture_and_run_to_the_right(series: dict[str, list[Point]]) -> None:
    drawn = chart("loss", series)
    assert [line.name for line in drawn.lines] == list(series)
    for line, curve in zip(drawn.lines, series.values(), strict=True):
        mean = coordinates(line.mean)
        assert len(mean) == len(curve)
        assert [x for x, _ in mean] == sorted(x for x, _ in mean)
        for x, y in [*mean, *coordinates(line.band)]:
            assert LEFT <= x <= RIGHT
            assert TOP <= y <= BOTTOM


def test_higher_values_are_higher_up() -> None:
    rising = chart("x", {"": [Point(float(i), float(i), float(i), float(i)) for i in range(10)]})
    heights = [y for _, y in coordinates(rising.lines[0].mean)]
    assert heights == sorted(heights, reverse=True)


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e9))
def test_ticks_are_a_few_round_numbers_in_between(place: float, span: float) -> None:
    low, high = place * span, (place + 1) * span
    found = ticks(low, high)
    assert 3 <= len(found) <= 11
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in found)


def test_ticks_by_hand() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 41_237) == [0, 10_000, 20_000, 30_000, 40_000]
    assert ticks(7, 7) == [7]


@given(st.lists(values, min_size=1, max_size=200))
def test_smoothing_keeps_constants_and_stays_between_the_extremes(rows: list[float]) -> None:
    smooth = smoothed(rows)
    margin = 1e-9 * max(1.0, *(abs(value) for value in rows))
    assert len(smooth) == len(rows)
    assert min(rows) - margin <= min(smooth) <= max(smooth) <= max(rows) + margin


def test_bars_are_as_high_as_their_values() -> None:
    drawn = bars([0.4, None, 0.1])
    assert [bar.height for bar in drawn] == [BARS, BARS / 4]
    assert all(bar.y + bar.height == BARS for bar in drawn)
    assert drawn[-1].x + drawn[-1].width == WIDTH
    assert bars([]) == bars([None]) == []
    assert bars([0.0])[0].height == 0
