"""Looking at what has been learned: validation on held-out samples, and grids of fixed prompts."""

import time

from finetune.health.pulse import Pulse
from finetune.monitor.samples import sample_grid
from finetune.monitor.watch import Watch
from finetune.parts import Parts
from finetune.step import TrainingStep
from finetune.validation import choose, validate


def look(parts: Parts, watch: Watch | None, pulse: Pulse, done: int, *, asked: bool) -> float | None:
    """Validate and draw samples where that is due after `done` steps, and samples in any case if asked to; the
    validation's loss. All ranks call it."""
    last = done == parts.total_steps
    monitor = parts.live(done).monitor
    validates = bool(parts.config.data.held_out) and due(done, monitor.validation.every_steps, last=last)
    draws = bool(monitor.samples.prompts) and (asked or due(done, monitor.samples.every_steps, last=last))
    if not (validates or draws):
        return None
    distance = parts.distributed.ema_distance() if validates else None  # of the weights that train
    with parts.distributed.evaluation_weights():
        pulse.at(done, "validating")
        loss = validation(parts, watch, done, distance) if validates else None
        pulse.at(done, "sampling")
        if watch and draws:  # the other ranks wait at their next collective
            autocast = parts.distributed.autocast()
            watch.grid(
                done, sample_grid(parts.pipeline, parts.tokenizer, parts.prompt_encoder, monitor.samples, autocast)
            )
    return loss


def validation(parts: Parts, watch: Watch | None, done: int, ema_distance: float | None) -> float:
    """The loss on the samples that are held out."""
    began = time.perf_counter()
    config, feed = parts.config, parts.feed
    step = TrainingStep(parts.trainee, parts.vae, parts.objective, parts.distributed.autocast())
    batches = feed.micro_batches(range(0), parts.tokenizer, parts.latents, config.diffusion)
    epoch = feed.plan.epoch_of_step(max(done - 1, 0))
    chosen = choose(
        feed.plan, feed.sources, epoch, config.monitor.validation.samples, timesteps=config.diffusion.timesteps
    )
    found = validate(chosen, batches, step.errors, parts.distributed)
    if watch:
        watch.validated(done, {**found, "ema_distance": ema_distance, "seconds": time.perf_counter() - began})
    return float(found["loss"])


def due(done: int, every_steps: int, *, last: bool) -> bool:
    """Whether what is done every so many steps, at the start and at the end, is due; 0 is never."""
    return bool(every_steps) and (done % every_steps == 0 or last)
