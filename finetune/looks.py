"""Looking at what has been learned: validation on held-out samples, and grids of fixed prompts."""

import time
from collections.abc import Sequence

import torch
from PIL import Image

from finetune.data.plan import Plan
from finetune.errors import UserError
from finetune.health.pulse import Pulse
from finetune.monitor.samples.config import Picture, SamplesConfig
from finetune.monitor.samples.grid import sample_grids
from finetune.monitor.samples.sampling import Sampler
from finetune.monitor.watch import Watch
from finetune.parts import Parts
from finetune.ranks import Ranks, on_main
from finetune.step import TrainingStep
from finetune.validation import choose, validate


def look(parts: Parts, watch: Watch | None, pulse: Pulse, done: int, *, asked: bool) -> float | None:
    """Validate and draw samples where that is due after `done` steps, and samples in any case if asked to; the
    validation's loss. All ranks call it."""
    last = done == parts.total_steps
    monitor, plan = parts.live(done).monitor, parts.feed.plan
    validates = bool(parts.config.data.held_out) and due(done, monitor.validation.every_steps, last=last)
    draws = monitor.samples.has_prompts and (
        asked
        or due(done, monitor.samples.every_steps, last=last)
        or due_in_epochs(plan, done, monitor.samples.every_epochs, last=last)
    )
    if not (validates or draws):
        return None
    distance = parts.distributed.ema_distance() if validates else None  # of the weights that train
    with parts.distributed.evaluation_weights():
        pulse.at(done, "validating")
        loss = validation(parts, watch, done, monitor.validation.samples, distance) if validates else None
        pulse.at(done, "sampling")
        if draws:
            draw(parts, watch, done, monitor.samples)
    return loss


def validation(parts: Parts, watch: Watch | None, done: int, samples: int, ema_distance: float | None) -> float:
    """The loss on at most so many of the samples that are held out."""
    began = time.perf_counter()
    config, feed = parts.config, parts.feed
    step = TrainingStep(parts.trainee, parts.vae, parts.objective, parts.distributed.autocast())
    batches = feed.micro_batches(range(0), parts.tokenizer, parts.latents, config.diffusion)
    epoch = feed.plan.epoch_of_step(max(done - 1, 0))
    chosen = choose(feed.plan, feed.sources, epoch, samples, timesteps=config.diffusion.timesteps)
    found = validate(chosen, batches, step.errors, parts.distributed)
    if watch:
        watch.validated(done, {**found, "ema_distance": ema_distance, "seconds": time.perf_counter() - began})
    return float(found["loss"])


def draw(parts: Parts, watch: Watch | None, done: int, config: SamplesConfig) -> None:
    """Draw grids of samples; where that fails, the run goes on without them. All ranks call it, within
    `evaluation_weights`."""
    distributed = parts.distributed
    sampler = Sampler(parts.pipeline, parts.tokenizer, parts.prompt_encoder, distributed.autocast())
    try:
        prompts = on_main(distributed, config.all_prompts)
        pictures = drawn_by_all(sampler, config.pictures(prompts), config.batch, distributed)
    except UserError as error:
        if watch:
            watch.event("samples failed", step=done, reason=str(error))
            watch.say(f"no samples after step {done:,}: {error}")
        return
    if watch:
        for size, grid in sample_grids(config, prompts, pictures, done):
            watch.grid(done, size, grid)


def drawn_by_all(sampler: Sampler, pictures: Sequence[Picture], at_most: int, ranks: Ranks) -> list[Image.Image]:
    """Sample pictures, each rank its share of the batches; all of them, in their order, on every rank.

    Raises:
        UserError: on some rank there was too little memory.
    """
    own: dict[int, Image.Image] = {}
    lacks_memory = False
    try:
        with sampler.evaluating():
            for batch in sampler.batches(pictures, at_most, ranks.world)[ranks.rank :: ranks.world]:
                own |= zip(batch, sampler.sample([pictures[place] for place in batch]), strict=True)
    except torch.cuda.OutOfMemoryError:
        lacks_memory = True
    gathered = ranks.gather((own, lacks_memory))
    if any(lacking for _, lacking in gathered):
        raise UserError("the GPU's memory does not suffice: lower monitor.samples.batch or sizes_px")
    found = {place: picture for share, _ in gathered for place, picture in share.items()}
    return [found[place] for place in range(len(pictures))]


def due(done: int, every_steps: int, *, last: bool) -> bool:
    """Whether what is done every so many steps, at the start and at the end, is due; 0 is never."""
    return bool(every_steps) and (done % every_steps == 0 or last)


def due_in_epochs(plan: Plan, done: int, every_epochs: int, *, last: bool) -> bool:
    """Whether what is done whenever so many epochs have ended, at the start and at the end, is due; 0 is never."""
    if not every_epochs or done == 0 or last:
        return bool(every_epochs)
    return plan.epoch(done) // every_epochs > plan.epoch(done - 1) // every_epochs
