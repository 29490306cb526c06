"""One process, against torch by hand."""

import copy

import torch
from torch import Tensor, nn

from finetune.distributed import Distributed
from finetune.optim.config import EmaConfig
from finetune.strategy import StrategyConfig


def inputs(step: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(step))


def loss_of(net: nn.Module, step: int) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        loss: Tensor = net(inputs(step)).float().square().mean()
    return loss


def test_fp16_is_what_torch_s_scaler_does() -> None:
    """The same weights, norms and scale, through an overflow; the scale is a power of two, so nothing is rounded."""
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    other = copy.deepcopy(net)
    optimizers = [torch.optim.AdamW(n.parameters(), lr=1e-2) for n in (net, other)]
    distributed = Distributed(StrategyConfig(name="single", precision="fp16"))
    distributed.prepare(
        net,
        optimizers[0],
        kind="adam",
        micro_batch=1,
        global_batch=2,
        max_grad_norm=0.1,
        resting={},
        ema=EmaConfig(),
    )
    start = 2.0**40  # overflows at first
    scaler = torch.amp.GradScaler("cpu", init_scale=start)
    state = {**distributed.state(), "loss_scale": {"factor": start, "steady_steps": 0}}
    distributed.load_state(lambda rank: state, 1)
    skipped = 0
    for step in range(40):
        for part in range(2):
            distributed.backward(loss_of(net, 2 * step + part), last=part == 1)
            scaler.scale(loss_of(other, 2 * step + part) / 2).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizers[1])
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        scaler.step(optimizers[1])
        scaler.update()
        optimizers[1].zero_grad()
        assert torch.equal(distributed.gradient_norm(), norm) or not norm.isfinite()
        assert distributed.gradient_norm().isfinite() == norm.isfinite()
        distributed.step([1e-2])
        skipped += not norm.isfinite()
        assert distributed.state()["loss_scale"]["factor"] == scaler.get_scale()
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert distributed.scales_loss
    assert 0 < skipped < 35
