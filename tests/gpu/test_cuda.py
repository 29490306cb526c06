"""What only a GPU can show."""

from pathlib import Path

import pytest
import torch

from finetune.data.loader import LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer
from finetune.optim.config import OptimConfig
from finetune.optim.optimizers import build_optimizer
from finetune.step import TrainingStep, trial_batch
from finetune.strategy import StrategyConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(tiny_model: Path, steps: int, *, precision: str = "fp32", attention: str = "sdpa") -> list[float]:
    """Train a few steps on a batch of noise in one process."""
    components = load_components(ModelConfig(path=str(tiny_model), attention=attention))
    distributed = Distributed(
        StrategyConfig(name="single", precision=precision), micro_batch=4, global_batch=4, max_grad_norm=1.0
    )
    trainee = Trainee(components, 1, True)
    optimizer = build_optimizer(OptimConfig(name="adamw8bit", lr=1e-3), trainee.parameter_groups().values())
    wrapped = distributed.prepare(trainee, optimizer)
    device = distributed.device
    vae = components.vae.to(device).requires_grad_(False)
    objective = Objective(DiffusionConfig(weighting="constant")).to(device)
    step = TrainingStep(wrapped, vae, objective, distributed.autocast())
    ids = PromptTokenizer(components.tokenizer, 150).longest(4)
    batch = trial_batch(ids, 128, 64, LatentShape(4, 8))
    batch = batch._replace(noise=torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(0)))
    batch = batch._replace(timesteps=torch.tensor([10, 300, 600, 999])).to(device)
    values = []
    for _ in range(steps):
        loss = step.loss(batch)
        distributed.backward(loss, last=True)
        distributed.step([1e-3, 1e-3])
        values.append(loss.item())
    return values


def test_8_bit_training_learns_on_cuda(tiny_model: Path) -> None:
    values = losses(tiny_model, 30)
    assert values[-1] < 0.9 * values[0]


def test_bf16_stays_near_fp32(tiny_model: Path) -> None:
    exact, rounded = losses(tiny_model, 3), losses(tiny_model, 3, precision="bf16")
    assert rounded == pytest.approx(exact, rel=0.03)


def test_xformers_computes_what_sdpa_does(tiny_model: Path) -> None:
    pytest.importorskip("xformers")
    assert losses(tiny_model, 2, attention="xformers") == pytest.approx(losses(tiny_model, 2), rel=1e-3)
