"""One step of SD1.5 in its real size on the CPU; prints the parameters that train, the loss and the peak of memory."""

import json
import resource

import torch
from torch import nn

from finetune.data.batch import Chunks, LatentShape
from finetune.data.config import BucketsConfig
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.engine import Engine
from finetune.model.assemble import Trainee
from finetune.model.families import Components
from finetune.model.text import PromptEncoder
from finetune.optim.config import EmaConfig, OptimConfig
from finetune.phases import PhaseConfig, unfold
from finetune.step import TrainingStep, trial_batch
from finetune.strategy import StrategyConfig
from tests.model.published import full_size

SIDE_PX, CHUNKS, SCALE = 256, 7, 0.02


def filled(module: nn.Module) -> nn.Module:
    """A module off the meta device, with small random weights and norms of 1."""
    generator = torch.Generator().manual_seed(0)
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=SCALE, generator=generator)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module


def main() -> None:
    """Take the step."""
    parts = {name: filled(module) for name, module in full_size("sd15").items()}
    parts["unet"].enable_gradient_checkpointing()
    encoder = PromptEncoder([parts["text_encoder"]], clip_skip=2, join_chunks="trim")
    components = Components(parts["unet"], parts["vae"], encoder, ())
    trainee = Trainee(components)
    distributed = Distributed(StrategyConfig(name="single", precision="bf16"))
    phases = unfold([PhaseConfig("1 steps")], OptimConfig(name="adamw8bit"), BucketsConfig(), micro_batch=1)
    engine = Engine(trainee, phases, distributed, EmaConfig(), global_batch=1, saved={})
    vae = components.vae.requires_grad_(False).eval()
    step = TrainingStep(engine.build(phases[0]), vae, Objective(DiffusionConfig()), distributed.autocast())
    before = trainee.unet.conv_in.weight.detach().clone()

    prompt = Chunks(torch.full((CHUNKS, 1, 77), 49407), torch.arange(CHUNKS)[None])
    batch = trial_batch(prompt, SIDE_PX, SIDE_PX, LatentShape(4, 8))
    loss = step.loss(step.prepare(batch)).weighted
    distributed.backward(loss, last=True)
    norm = distributed.gradient_norm()
    distributed.step(list(engine.rates(phases[0], 0, 1).values()))
    told = {
        "unet": sum(p.numel() for p in trainee.unet.parameters()),
        "trained": sum(p.numel() for p in trainee.parameters() if p.requires_grad),
        "loss": loss.item(),
        "grad_norm": norm.item(),
        "moved": bool((trainee.unet.conv_in.weight != before).any()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
