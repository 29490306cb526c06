"""What ranks did between two flushes, and what it comes to."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batch import Batch, LatentShape
from finetune.data.preparer import Facts
from finetune.monitor.intervals import ACTIVITIES, GIB, GROUPS, Interval, combined, mean_deciles, quantile
from finetune.step import trial_batch
from tests.helpers import blank


def batch(width: int, height: int, facts: list[Facts], chunks: int = 1) -> Batch:
    return trial_batch(blank(len(facts), chunks), width, height, LatentShape(4, 8))._replace(facts=facts)


def facts(
    tokens: int = 5, tags: int = 0, dropped: int = 0, truncated: bool = False, cached: bool | None = None
) -> Facts:
    return Facts(tokens, tags, dropped, truncated, cached)


def interval(
    *batches: Batch, steps: tuple[float, ...] = (1.0,), waited_s: float = 0.0, seconds: float = 10.0
) -> Interval:
    """One that took 10 seconds, unless said otherwise."""
    made = Interval()
    for one in batches:
        made.take(one)
    for step_s in steps:
        made.step(step_s, waited_s, step_s)
    made.end(None)
    made.seconds = seconds
    return made


def test_shares_are_those_of_the_rank_that_has_most() -> None:
    ranks = [interval(batch(64, 64, [facts()]), steps=(4.0,), waited_s=waited) for waited in (1.0, 3.0)]
    ranks[0].spent["saving"] = 2.0
    ranks[1].spent["sampling"] = 0.5
    found = combined(ranks)
    shares = {name: found[f"{name}_share"] for name in ACTIVITIES}
    assert shares == pytest.approx({"data_wait": 0.3, "compute": 0.3, "saving": 0.2, "sampling": 0.05})


def test_time_is_spent_on_what_is_done_within(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 4.0, 9.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    made = Interval(began=0.0)
    with made.spending("saving"):
        pass
    with pytest.raises(OSError, match="full"), made.spending("saving"):
        raise OSError("full")
    made.end(None)
    assert made.spent == {**dict.fromkeys(ACTIVITIES, 0.0), "saving": 7.0}
    assert made.seconds == 20.0


def test_samples_are_counted_over_all_ranks() -> None:
    ranks = [
        interval(batch(64, 96, [facts()] * 3), batch(96, 64, [facts()] * 2, chunks=2)),
        interval(batch(64, 96, [facts()] * 3, chunks=2)),
    ]
    found = combined(ranks)
    assert found["buckets"] == {"64x96": 6, "96x64": 2}
    assert list(found["buckets"]) == ["64x96", "96x64"]
    assert found["images_per_s"] == 0.8


def test_prompts_are_counted_over_all_ranks() -> None:
    ranks = [
        interval(batch(64, 64, [facts(0), facts(10, tags=3, dropped=1)])),
        interval(batch(64, 64, [facts(20, tags=2, dropped=2, truncated=True), facts(30)])),
    ]
    found = combined(ranks)
    assert (found["prompt_tokens_mean"], found["prompt_tokens_p95"]) == (15.0, 30)
    assert (found["empty_prompt_share"], found["truncated_share"]) == (0.25, 0.25)
    assert found["dropped_tag_share"] == 3 / 8


def test_prompts_without_tags_drop_none() -> None:
    assert combined([interval(batch(64, 64, [facts()]))])["dropped_tag_share"] == 0.0


def test_the_cache_is_told_of_where_something_is_remote() -> None:
    near = combined([interval(batch(64, 64, [facts()]))])
    assert (near["cache_hits"], near["cache_misses"]) == (None, None)
    mixed = [facts(cached=cached) for cached in (True, True, False, None)]
    far = combined([interval(batch(64, 64, mixed)), interval(batch(64, 64, [facts(cached=False)]))])
    assert (far["cache_hits"], far["cache_misses"]) == (2, 2)


def test_memory_is_that_of_the_rank_that_needs_most() -> None:
    ranks = [interval(batch(64, 64, [facts()])) for _ in range(3)]
    assert combined(ranks)["gpu_memory_peak_gib"] is None
    for rank, peak in zip(ranks, (1, 3, 2), strict=True):
        rank.memory_peak = peak * GIB
    assert combined(ranks)["gpu_memory_peak_gib"] == 3.0


def test_an_interval_comes_through_a_pipe_as_it_was() -> None:
    made = interval(batch(64, 64, [facts(cached=True)]))
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301


def test_all_that_trackers_show_is_there() -> None:
    """But for what the whole run and the model add."""
    shown = {key for keys in GROUPS.values() for key in keys} - {"mfu", "eta_s", *GROUPS["run"]}
    assert shown <= combined([interval(batch(64, 64, [facts()]))]).keys()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_the_nearest_rank(values: list[int], share: float) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    assert quantile(Counter(values), share) == expected


def test_deciles_are_averaged_over_the_steps_that_have_them() -> None:
    lines = [{"loss_by_decile": [1.0, None, None]}, {"loss_by_decile": [2.0, 5.0, None]}]
    assert mean_deciles(lines) == [1.5, 5.0, None]
