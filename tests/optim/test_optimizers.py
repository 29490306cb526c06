"""Optimizers by name."""

import bitsandbytes
import pytest
import torch
from torch import nn

from finetune.errors import UserError
from finetune.optim.config import OPTIMIZERS as ALLOWED
from finetune.optim.config import OptimConfig
from finetune.optim.optimizers import OPTIMIZERS, build_optimizer


def test_every_name_that_is_allowed_is_built_with_the_recipe_s_values() -> None:
    assert set(ALLOWED) == set(OPTIMIZERS)
    for name in ALLOWED:
        groups = [[nn.Parameter(torch.ones(5000))], [nn.Parameter(torch.ones(3))]]
        config = OptimConfig(name=name, betas=[0.8, 0.95], eps=1e-7, weight_decay=0.2)
        optimizer = build_optimizer(config, groups)
        assert [g["params"] for g in optimizer.param_groups] == groups
        assert all(
            (g["betas"], g["eps"], g["weight_decay"]) == ((0.8, 0.95), 1e-7, 0.2) for g in optimizer.param_groups
        )


def test_8_bit_keeps_its_moments_in_bytes() -> None:
    parameter = nn.Parameter(torch.ones(8192))
    optimizer = build_optimizer(OptimConfig(name="adamw8bit"), [[parameter]])
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    parameter.grad = torch.randn(8192, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd"}, r"optim\.name is 'sgd': use one of adamw, adamw8bit"),
        ({"schedule": "cosine"}, r"optim\.schedule is 'cosine': use one of constant, linear"),
        ({"lr": 0.0}, r"optim\.lr is 0\.0"),
        ({"betas": [0.9]}, r"optim\.betas is \[0\.9\]: give two numbers"),
        ({"max_grad_norm": 0.0}, r"optim\.max_grad_norm is 0\.0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps is -1"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimConfig(**settings)  # type: ignore[arg-type]
