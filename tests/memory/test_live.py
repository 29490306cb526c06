"""Bytes alive, against what can be counted by hand."""

import torch
from torch import nn

from finetune.memory.live import LiveBytes


def test_bytes_are_counted_from_making_to_end() -> None:
    with LiveBytes("cpu") as live:
        kept = torch.zeros(100)
        assert live.now == 400
        view = kept[10:].view(9, 10)
        assert live.now == 400
        for _ in range(3):
            torch.zeros(1000, dtype=torch.float16)
        del kept
        assert (live.now, live.peak) == (400, 2400)
        del view
    assert (live.now, live.peak) == (0, 2400)


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.zeros(50)
    with LiveBytes("cpu", [weight]) as live:
        weight.add_(1.0)
        weight.view(5, 10).mul_(2.0)
    assert live.peak == 0


def test_tensors_without_memory_count_as_those_that_have_it() -> None:
    peaks = []
    for device in ("cpu", "meta"):
        layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)).to(device)
        with LiveBytes(device, layers.parameters()) as live:
            layers(torch.zeros(16, 8, device=device)).sum().backward()
        peaks.append((live.now, live.peak))
    # Left are the gradients and what the interpreter has not let go of.
    assert peaks[0] == peaks[1]
    assert peaks[0][0] >= 4 * sum(p.numel() for p in layers.parameters())
