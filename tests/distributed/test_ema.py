"""The moving average of flat tensors, without any processes."""

from dataclasses import replace

import pytest
import torch

from finetune.distributed.ema import Ema
from finetune.distributed.fragments import whole
from finetune.optim.config import EmaConfig


@pytest.mark.parametrize("device", ["cpu", "model"])
@pytest.mark.parametrize(
    ("warmup", "every", "decays"),
    [
        (False, 1, [0.4] * 5),
        (True, 1, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14]),
        (False, 2, [1.0, 0.16, 1.0, 0.16, 1.0]),
        (True, 3, [1.0, 1.0, 0.25**3, 1.0, 1.0]),
    ],
)
def test_updates_are_those_of_the_formula(device: str, warmup: bool, every: int, decays: list[float]) -> None:
    flat = whole("w", torch.nn.Parameter(torch.zeros(1)))
    ema = Ema(EmaConfig(decay=0.4, warmup=warmup, every_steps=every, device=device), [flat])
    expected = 0.0
    for step, decay in enumerate(decays, start=1):
        flat.values.fill_(float(step))
        ema.update()
        expected = decay * expected + (1 - decay) * step
        assert ema.values[0].item() == pytest.approx(expected, rel=1e-6)
    assert ema.steps == len(decays)
    ema.restart()
    assert (ema.values[0].item(), ema.steps) == (5.0, 0)


def test_an_average_that_was_not_saved_begins_with_the_weights() -> None:
    flats = [whole(name, torch.nn.Parameter(torch.full((2,), value))) for name, value in (("a", 1.0), ("b", 2.0))]
    ema = Ema(EmaConfig(decay=0.9), flats)
    ema.set(0, torch.full((2,), 7.0))
    flats[1].values.fill_(3.0)
    ema.set(1, None)
    assert [v.tolist() for v in ema.values] == [[7.0, 7.0], [3.0, 3.0]]


def test_squares_are_those_of_what_this_rank_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.distributed.ema.AT_A_TIME", 2)
    flats = [whole("a", torch.nn.Parameter(torch.zeros(5))), whole("b", torch.nn.Parameter(torch.zeros(3)))]
    others = replace(whole("c", torch.nn.Parameter(torch.ones(4))), saved=False)
    ema = Ema(EmaConfig(decay=0.9), [*flats, others])
    assert ema.squares().tolist() == [0.0, 0.0]
    flats[0].values.fill_(3.0)
    flats[1].values.fill_(1.0)
    ema.set(1, torch.full((3,), 3.0))
    assert ema.squares().tolist() == pytest.approx([5 * 9.0 + 3 * 4.0, 5 * 9.0 + 3 * 1.0])
    assert Ema(EmaConfig(decay=0.9), [others]).squares().tolist() == [0.0, 0.0]
