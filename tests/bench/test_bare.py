"""The plain loop does the work of ours, so that their speeds can be compared."""

from pathlib import Path

import pytest
import torch

from finetune.data.batch import LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed.runtime import autocast
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer, load_tokenizers
from finetune.step import TrainingStep, trial_batch
from tests.bench.bare import MAX_GRAD_NORM, BareLoop

CPU = torch.device("cpu")
RATE = 1e-3


def test_both_loops_have_the_same_losses_step_by_step(tiny_model: Path) -> None:
    config = ModelConfig(path=str(tiny_model))
    prompts = PromptTokenizer(load_tokenizers(config), 75)(["picture number 1", "tag 2"])
    batch = trial_batch(prompts, 64, 64, LatentShape(4, 8))
    noise, posterior = torch.randn((2, *batch.noise.shape), generator=torch.Generator().manual_seed(0))
    batch = batch._replace(noise=noise, posterior_noise=posterior, timesteps=torch.tensor([10, 900]))

    loop = BareLoop(load_components(config), CPU, bf16=False)
    optimizer = torch.optim.AdamW(loop.parameters, lr=RATE)
    bare = [loop.step([batch, batch], optimizer) for _ in range(3)]

    components = load_components(config)
    trainee = Trainee(components)
    step = TrainingStep(
        trainee,
        components.vae.requires_grad_(False),
        Objective(DiffusionConfig(weighting="constant")),
        autocast(CPU, "fp32"),
    )
    optimizer = torch.optim.AdamW(trainee.trainable.values(), lr=RATE)
    ours = []
    for _ in range(3):
        loss = step.loss(step.prepare(batch)).weighted
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        ours.append(loss.item())
    assert bare == pytest.approx(ours, rel=1e-4)
    assert len(set(ours)) == 3
