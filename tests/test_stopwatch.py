"""Seconds of work that is timed in pieces."""

import time

import torch

from finetune.stopwatch import Stopwatch, take_memory_peak


def test_only_what_is_within_counts() -> None:
    watch = Stopwatch(torch.device("cpu"))
    began = time.perf_counter()
    for _ in range(3):
        with watch:
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.06 <= watch.seconds() <= time.perf_counter() - began - 0.15


def test_nothing_takes_no_time() -> None:
    assert Stopwatch(torch.device("cpu")).seconds() == 0.0


def test_there_is_no_peak_without_a_gpu() -> None:
    assert take_memory_peak(torch.device("cpu")) is None
