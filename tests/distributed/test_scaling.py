"""The loss scale against torch's own."""

import torch

from finetune.distributed.scaling import LossScale


def test_the_scale_follows_torch_s_rule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, scaler, scale = torch.optim.SGD([parameter], lr=0.0), torch.amp.GradScaler("cpu"), LossScale()
    overflows = {3, 4, 2010, 2020}
    for step in range(2030):
        assert scale.factor == scaler.get_scale()
        scaler.scale(parameter.sum())
        parameter.grad = torch.full((1,), float("inf") if step in overflows else 1.0)
        scaler.step(optimizer)
        scaler.update()
        scale.update(finite=step not in overflows)
    assert scale.factor == 65536.0 / 2**4 * 2  # four overflows, and one long enough stretch without
