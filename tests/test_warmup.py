"""Which buckets are compiled for, and what a warm-up asks for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import train
from finetune.monitor.intervals import Interval
from finetune.train import Run
from finetune.warmup import frequent, least_trained


def plan(counts: list[int]) -> Any:
    sizes = np.array([(64 + 8 * i, 512 - 8 * i) for i in range(len(counts))])
    return SimpleNamespace(sizes=sizes, emitted=lambda epoch: np.array(counts))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any), st.integers(1, 40))
def test_the_most_frequent_buckets_are_chosen(counts: list[int], at_most: int) -> None:
    sizes, share = frequent(plan(counts), 0, at_most)
    found = [counts[(width - 64) // 8] for width, _ in sizes]
    assert len(set(sizes)) == len(sizes)
    assert all(width + height == 576 for width, height in sizes)
    assert found == [count for count in sorted(counts, reverse=True)[:at_most] if count]
    assert share == pytest.approx(sum(found) / sum(counts))


def test_every_layer_that_trains_is_asked_for_its_least_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2), nn.SiLU())
    model[2].requires_grad_(False)
    assert [id(p) for p in least_trained(model)] == [id(model[0].bias), id(model[1].weight)]


def test_compiling_takes_no_interval_s_time_and_nothing_that_it_has_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.__new__(Run)
    run.parts = run.watch = run.pulse = None  # type: ignore[assignment]
    run.interval = Interval(began=100.0)
    run.interval.spent["sampling"] = 3.0  # as after a look at a border
    clock = iter((110.0, 170.0))
    monkeypatch.setattr(train, "warm_up", lambda *told: None)
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    run.warm_up(5)
    assert run.interval.began == 160.0
    assert run.interval.spent["sampling"] == 3.0
