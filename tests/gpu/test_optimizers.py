"""Optimizers on a GPU."""

import pytest
import torch
from torch import nn

from finetune.optim.config import OptimConfig
from finetune.optim.optimizers import FUSED, build_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 20


@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_step_as_torch_s_others_do(name: str) -> None:
    """Weights after 20 steps; fp32 in another order, a millionth of the largest."""
    ends = []
    for options in ({}, {"fused": False}):
        generator = torch.Generator("cuda").manual_seed(0)
        shapes = ((64, 64), (64,), (16, 4, 3, 3))
        parameters = [nn.Parameter(torch.randn(shape, device="cuda", generator=generator)) for shape in shapes]
        optimizer = build_optimizer(OptimConfig(name=name, lr=1e-2, options=options), {"unet": parameters})
        for _ in range(STEPS):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, device="cuda", generator=generator)
            optimizer.step()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert (ends[0] - ends[1]).abs().max() <= 1e-6 * ends[1].abs().max()
