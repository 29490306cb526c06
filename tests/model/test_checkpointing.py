"""Blocks that compute their activations again, one by one and together."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.model.assemble import Trainee
from finetune.model.checkpointing import blocks, checkpoint_blocks
from finetune.model.config import ModelConfig
from finetune.model.families import load_components


def passes(trainee: Trainee, encoders: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A loss and its gradients, by parameter."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 24, generator=generator)
    ids = torch.randint(0, 100, (4, encoders, 77), generator=generator)
    rows = torch.arange(4).view(2, 2)
    told = torch.tensor([[128, 192, 0, 0, 128, 192]]).expand(2, -1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        prediction = trainee(latents, torch.tensor([10, 900]), ids, rows, told)
    loss = prediction.float().square().mean()
    trainee.zero_grad()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in trainee.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_choice_of_blocks_changes_no_bit(twin: Path, dtype: torch.dtype) -> None:
    components = load_components(ModelConfig(path=str(twin)))
    trainee = Trainee(components)
    take = partial(passes, trainee, len(components.text_encoders), dtype)
    names = list(blocks(trainee))
    expected = take()
    for chosen in (names, names[::2], names[1::2], [name for name in names if "attentions" in name]):
        checkpoint_blocks(trainee, chosen)
        found = take()
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
