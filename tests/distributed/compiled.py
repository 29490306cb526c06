"""Trains a small UNet whose blocks are compiled, and the same without; started by test_compiled.py.

Args: strategy, file of results.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.fx import GraphModule

from finetune.data.batch import Chunks, LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.model.graphs import Graphs
from finetune.optim.config import EmaConfig
from finetune.step import TrainingStep, trial_batch
from finetune.strategy import StrategyConfig
from finetune.warmup import warm_up

SIZES = ((16, 24), (24, 16))
"""(width, height) of buckets in pixels, the more frequent first: the one that is compiled for."""
LATENTS = LatentShape(4, 2)
STEPS, ACCUMULATION = 2, 2


class Model(nn.Module):
    """A UNet of one level, and an embedding for a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            down_block_types=["CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D"],
            block_out_channels=[8],
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=8,
        ).train()
        self.text = nn.Embedding(9, 8)

    def forward(
        self, latents: Tensor, timesteps: Tensor, input_ids: Tensor, chunk_rows: Tensor, size_and_crop: Tensor
    ) -> Tensor:
        states = self.text(input_ids[:, 0])[chunk_rows].flatten(1, 2)
        prediction: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states).sample
        return prediction


class Trainer:
    """A few steps under a strategy."""

    def __init__(self, distributed: Distributed) -> None:
        self.distributed, self.model = distributed, Model()
        torch.manual_seed(0)
        two = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        self.vae = AutoencoderKL(block_out_channels=[4, 4], norm_num_groups=2, **two).eval().requires_grad_(False)
        self.objective = Objective(DiffusionConfig())
        wrapped = distributed.prepare(
            self.model,
            torch.optim.AdamW(self.model.parameters()),
            kind="adamw",
            micro_batch=2,
            global_batch=2 * ACCUMULATION * distributed.world,
            max_grad_norm=1.0,
            resting={},
            ema=EmaConfig(),
        )
        self.step = TrainingStep(wrapped, self.vae, self.objective, distributed.autocast())

    def warm_up(self) -> None:
        """Compile for the more frequent size."""
        plan = SimpleNamespace(
            sizes=np.array(SIZES),
            emitted=lambda epoch: np.array([2, 1]),
            epoch_of_step=lambda step: 0,
            micro_batch=lambda step: 2,
        )
        parts = SimpleNamespace(
            graphs=Graphs(self.model.unet, self.vae.encoder),
            feed=SimpleNamespace(plan=plan),
            config=SimpleNamespace(model=SimpleNamespace(compile_buckets=1)),
            grey=lambda prompts, *size: trial_batch(chunks(prompts, 3), *size, LATENTS),
            trainee=self.model,
            vae=self.vae,
            objective=self.objective,
            distributed=self.distributed,
        )
        told: Any = SimpleNamespace(at=lambda step, activity: None)
        warm_up(parts, None, told, 0)  # type: ignore[arg-type]

    def train(self) -> list[float]:
        """The losses of steps in which both sizes come up, with prompts of several lengths."""
        losses = []
        for step in range(STEPS):
            for i, size in enumerate(SIZES):
                batch = trial_batch(chunks(2, 1 + step + i), *size, LATENTS)
                noise = torch.Generator().manual_seed(10 * step + i + 100 * self.distributed.rank)
                batch = batch._replace(noise=torch.randn(batch.noise.shape, generator=noise))
                loss = self.step.loss(self.step.prepare(batch)).weighted
                self.distributed.backward(loss, last=i == ACCUMULATION - 1)
                losses.append(loss.item())
            losses.append(self.distributed.gradient_norm().item())
            self.distributed.step([1e-2])
        return losses


def chunks(prompts: int, each: int) -> Chunks:
    """Prompts of so many different chunks."""
    ids = torch.arange(each)[:, None, None].expand(each, 1, 77)
    return Chunks(ids, torch.arange(each).expand(prompts, each))


def main() -> None:
    """Train without graphs and with them."""
    strategy, output = sys.argv[1:]
    made = called = 0

    def compiler(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        nonlocal made
        made += 1

        def call(*args: Any) -> Any:
            nonlocal called
            called += 1
            return graph.forward(*args)

        return call

    torch.compile = partial(torch.compile, backend=compiler)  # type: ignore[assignment]
    distributed = Distributed(StrategyConfig(name=strategy, threads=1, timeout_s=60))
    plain = Trainer(distributed).train()
    trainer = Trainer(distributed)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.warm_up()
    after = list(trainer.model.parameters())
    results = {
        "untouched": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        "gradients": sum(p.grad is not None and bool(p.grad.any()) for p in after),
        "made": made,
    }
    called = 0
    results |= {"plain": plain, "compiled": trainer.train(), "made_after": made, "called": called}
    if distributed.is_main:
        torch.save(results, output)
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
