"""Compiling before training: graphs for the buckets that most micro-batches have."""

import time

import numpy as np
import torch
from torch import nn

from finetune.data.plan import Plan
from finetune.health.pulse import Pulse
from finetune.monitor.watch import Watch
from finetune.parts import Parts
from finetune.step import TrainingStep


def warm_up(parts: Parts, watch: Watch | None, pulse: Pulse, step: int) -> None:
    """Where the recipe asks for it, compile for most micro-batches of a step and of those after it, by a forward and a
    backward pass of each shape, which leave no trace. All ranks call it."""
    graphs, plan = parts.graphs, parts.feed.plan
    if graphs is None:
        return
    pulse.at(step, "starting")
    began = time.perf_counter()
    sizes, share = frequent(plan, plan.epoch_of_step(step), parts.config.model.compile_buckets)
    # Not the wrapped model: while torch's DDP calls a model, graphs are cut where its buckets of gradients end.
    training = TrainingStep(parts.trainee, parts.vae, parts.objective, parts.distributed.autocast())
    trained = least_trained(parts.trainee)
    with graphs.compiling():
        for number, (width, height) in enumerate(sizes, 1):
            if watch:
                watch.say(f"compile  {width}×{height} px, {number} of {len(sizes)} buckets")
            batch = parts.grey(plan.micro_batch(step), width, height)
            loss = training.loss(training.prepare(batch)).weighted
            # Unlike `backward` it calls no hook of those that share gradients among ranks, and keeps none.
            torch.autograd.grad(loss, trained, allow_unused=True)
    if watch:
        seconds = time.perf_counter() - began
        watch.event("compiled", step=step, buckets=len(sizes), share=share, seconds=seconds)
        watch.say(f"compile  {share:.0%} of the micro-batches run compiled, after {seconds:.0f} s")


def frequent(plan: Plan, epoch: int, at_most: int) -> tuple[list[tuple[int, int]], float]:
    """The (width, height) of the buckets with the most micro-batches in an epoch, the most first, and the share of all
    micro-batches that is theirs."""
    counts = plan.emitted(epoch)
    rows = np.argsort(-counts, kind="stable")[:at_most]
    rows = rows[counts[rows] > 0]
    sizes = [(int(width), int(height)) for width, height in plan.sizes[rows]]
    return sizes, float(counts[rows].sum() / counts.sum())


def least_trained(trainee: nn.Module) -> list[nn.Parameter]:
    """The smallest parameter that trains of every layer: its gradient asks for the backward pass of the whole layer,
    and takes next to no memory."""
    own = ([p for p in module.parameters(recurse=False) if p.requires_grad] for module in trainee.modules())
    return [min(trained, key=nn.Parameter.numel) for trained in own if trained]
