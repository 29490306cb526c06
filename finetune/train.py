"""The run: build its parts in the order in which they are needed, then the loop. Start reading here."""

import time
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from finetune.checkpoint.export import build_pipeline, export
from finetune.checkpoint.resume import check_identity, package_versions
from finetune.checkpoint.store import Checkpoint, CheckpointStore
from finetune.config import Config, phases, plan_settings, policies, resolved
from finetune.data.loader import LatentShape
from finetune.data.preparer import BadSample
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.distributed.fragments import saved_parameters
from finetune.engine import Engine
from finetune.errors import UserError
from finetune.feed import Batches, Feed
from finetune.model.assemble import Trainee
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer, load_tokenizers
from finetune.monitor.samples import sample_grid
from finetune.monitor.watch import Watch
from finetune.optim.optimizers import check_optimizer
from finetune.phases import Phase, Phases
from finetune.step import TrainingStep, trial_batch
from finetune.validation import Fixed, choose, validate


def train(config: Config) -> None:
    """Train a recipe from where its run's last checkpoint left off, and export what comes out.

    Raises:
        UserError: something in the recipe, the data, the model or the run's folder has to be mended first.
    """
    run = Run(config)
    try:
        start = run.begin()
        with run.watch(start) as watch:
            run.fit(start, watch)
            run.finish(watch)
    finally:
        run.distributed.close()


class Run:
    """The parts of a run, as one rank sees them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.distributed = Distributed(config.strategy)
        self.found: list[tuple[str, str]] = []
        channel = self.distributed.side_channel()
        self.store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoint, channel)
        self.feed = Feed(config.data, policies(config), plan_settings(config), config.run_folder, self.distributed)
        self.checkpoint = self.find_checkpoint()
        self.take_up_data()
        unfolded = phases(config)
        self.phases = Phases(unfolded, self.feed.plan)
        for number, phase in enumerate(unfolded, 1):
            check_optimizer(phase.optim)
            if config.data.held_out:
                self.held_out(self.phases.span(number).start)

        tokenizers = load_tokenizers(config.model)
        self.tokenizer = PromptTokenizer(tokenizers, config.model.max_tokens, config.model.pad_chunks)
        self.feed.check_prompts(self.tokenizer)
        self.objective = Objective(config.diffusion).to(self.distributed.device)
        components = load_components(config.model)
        self.latents = LatentShape(components.latent_channels, components.vae_factor)
        self.trainee = Trainee(components)
        self.prompt_encoder = components.prompt_encoder
        saved = saved_parameters(self.trainee, *self.checkpoint.ranks) if self.checkpoint else {}
        batch = config.train.global_batch
        self.engine = Engine(self.trainee, unfolded, self.distributed, config.ema, global_batch=batch, saved=saved)
        self.vae = components.vae.to(self.distributed.device).eval().requires_grad_(False)
        self.pipeline = build_pipeline(components, config.diffusion)

    def find_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint of the run. Raises UserError where there is one and resume=never."""
        checkpoint = self.store.newest(lambda kind, sentence: self.found.append((kind, sentence)))
        if checkpoint and self.config.resume == "never":
            raise UserError(f"{checkpoint.folder} exists but resume=never: give another run.name, or resume=auto")
        return checkpoint

    def take_up_data(self) -> None:
        """Open the data where the checkpoint left it. Raises UserError where it is not what the run was trained on."""
        if self.checkpoint is None:
            self.feed.begin(None, 0)
        else:
            self.feed.begin(self.checkpoint.meta["journal"], self.checkpoint.step)
            check_identity(self.checkpoint, self.feed.identity(self.checkpoint.step))

    def begin(self) -> int:
        """Build what trains first, try it out, and load the checkpoint that was found; the steps that it has done."""
        start = self.checkpoint.step if self.checkpoint else 0
        self.build(self.phases.at(start))
        self.trial(start)
        if self.checkpoint:
            self.distributed.load_state(*self.checkpoint.ranks)
        return start

    def build(self, phase: Phase) -> None:
        """Make the optimizer of a phase and wrap the model for it."""
        wrapped = self.engine.build(phase)
        self.step = TrainingStep(wrapped, self.vae, self.objective, self.distributed.autocast())

    def trial(self, start: int) -> None:
        """Take a step of the most pixels that any phase from here on has, with the longest prompt, and forget it, so
        that memory runs out in the first minute or, unless a later phase keeps more state, never. Raises UserError
        where it does, or where the model gives no finite loss."""
        micro_batch, width, height = self.feed.plan.largest(start)
        batch = trial_batch(self.tokenizer.longest(micro_batch), width, height, self.latents)
        try:
            loss = self.step.loss(batch.to(self.distributed.device))
            self.distributed.rehearse(loss)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"a micro-batch of {micro_batch} pictures of {width}×{height} px with the longest prompt does not fit "
                "into the GPU's memory: lower train.micro_batch, set model.gradient_checkpointing=true, or train fewer "
                "pixels (data=px512)"
            ) from error
        if not torch.isfinite(loss):
            raise UserError(f"the model in {self.config.model.path} gives a loss of {loss.item()}: check its weights")

    def watch(self, start: int) -> Watch | nullcontext[None]:
        """What watches the run; nothing on ranks other than the first."""
        if not self.distributed.is_main:
            return nullcontext()
        watch = Watch(
            self.config.run_folder,
            self.config.run.name,
            self.config.monitor,
            resolved(self.config),
            self.feed.journal,
            notes=self.feed.notes,
            done_steps=start,
            total_steps=self.phases.total_steps,
            global_batch=self.config.train.global_batch,
            max_bad_share=self.config.data.max_bad_share,
        )
        watch.phase(start, self.phases.number(start), self.phases.at(start).facts)
        for source, forms in self.feed.forms(self.feed.plan.epoch_of_step(start)).items():
            watch.event("prompts", source=source, **forms)
            watch.say(f"prompts  {source}: " + ", ".join(f"{share:.1%} {form}" for form, share in forms.items()))
        if advice := self.objective.neglect:
            watch.event("objective", advice=advice)
            watch.say(f"loss     {advice}")
        for kind, sentence in self.found:
            watch.event(kind, reason=sentence)
            watch.say(f"{kind}: {sentence}")
        return watch

    def fit(self, start: int, watch: Watch | None) -> None:
        """Train from step `start` to the last, stretch by stretch: at the borders between them the data or the phase
        may change."""
        bad: list[BadSample] = []
        if start == 0:
            self.look(0, watch)
        while start < (total := self.phases.total_steps):
            phase_end = self.phases.span(self.phases.number(start)).stop
            stretch = range(start, min(self.feed.border(start) or total, phase_end))
            with self.batches(stretch) as batches:
                for step in stretch:
                    batches.reached(step)
                    self.train_step(step, batches, bad, watch)
            start = stretch.stop
            if start < total:
                self.flush(bad, watch)
                self.renew(start, watch)
                self.enter(start, watch)

    def train_step(self, step: int, batches: Batches, bad: list[BadSample], watch: Watch | None) -> None:
        """Train a step counted from 0, and do what is due after it."""
        began = time.perf_counter()
        loss, waited_s = self.accumulate(batches, bad)
        rates = self.engine.rates(self.phases.at(step), step, self.phases.total_steps)
        grad_norm = self.distributed.gradient_norm()
        self.distributed.step(list(rates.values()))
        done, total = step + 1, self.phases.total_steps
        if watch:
            values = self.metrics(step, loss, grad_norm, rates)
            seconds = {"data_wait_s": waited_s, "step_s": time.perf_counter() - began}
            watch.record({**values, **seconds}, self.feed.plan.step(step))
        saves = done % self.config.checkpoint.every_steps == 0 or done == total
        if saves or done % self.config.monitor.flush_every_steps == 0:
            self.flush(bad, watch)
        self.look(done, watch)  # before saving: what is done again after a kill is looked at again
        if saves:
            self.save(done, watch)

    def batches(self, steps: range) -> AbstractContextManager[Batches]:
        """This rank's micro-batches of some steps."""
        return self.feed.batches(
            steps,
            self.tokenizer,
            self.latents,
            diffusion=self.config.diffusion,
            pin=self.distributed.device.type == "cuda",
        )

    def renew(self, step: int, watch: Watch | None) -> None:
        """Take in what has changed in the data by a border; what cannot be used is passed over with an event."""
        try:
            journal = self.feed.changes(step, lambda plan: Phases(phases(self.config), plan))
        except UserError as error:
            if watch:
                watch.event("data change passed over", step=step, reason=str(error))
            return
        if journal is None:
            return
        self.feed.renew(journal)
        self.phases = Phases(phases(self.config), self.feed.plan)
        if watch:
            watch.data_changed(step, self.feed.journal, self.phases.total_steps)

    def enter(self, step: int, watch: Watch | None) -> None:
        """Go over to the phase of a step. What it can't train with as it is, is built anew from a checkpoint, as it
        would be if the run had been killed here."""
        phase, number = self.phases.at(step), self.phases.number(step)
        if not self.engine.fits(phase):
            checkpoint = self.save(step, watch)
            self.build(phase)
            self.distributed.load_state(*checkpoint.ranks)
        if watch and step == self.phases.span(number).start:
            watch.phase(step, number, phase.facts)

    def accumulate(self, batches: Batches, bad: list[BadSample]) -> tuple[Tensor, float]:
        """Add up one step's gradients. Returns its mean loss over all ranks, on the device, and the seconds that were
        spent waiting for data; what could not be used is added to `bad`."""
        losses, waited_s = [], 0.0
        for i in range(self.distributed.accumulation):
            asked = time.perf_counter()
            batch = next(batches).to(self.distributed.device)
            waited_s += time.perf_counter() - asked
            loss = self.step.loss(batch)
            self.distributed.backward(loss, last=i == self.distributed.accumulation - 1)
            losses.append(loss.detach())
            bad += batch.bad
        return self.distributed.mean(torch.stack(losses).mean()), waited_s

    def metrics(self, step: int, loss: Tensor, grad_norm: Tensor, rates: dict[str, float]) -> dict[str, Any]:
        """The line of metrics.jsonl of a step counted from 0, but for its times."""
        done = step + 1
        return {
            "step": done,
            "samples_seen": done * self.config.train.global_batch,
            "epoch": self.feed.plan.epoch(done),
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": rates,
            "phase": self.phases.number(step),
        }

    def flush(self, bad: list[BadSample], watch: Watch | None) -> None:
        """Write what was recorded since the last flush."""
        gathered = self.distributed.gather(bad)
        if watch:
            watch.flush(chain.from_iterable(gathered))
        bad.clear()

    def save(self, done: int, watch: Watch | None) -> Checkpoint:
        """Save a checkpoint after `done` steps, unless that has been done; the newest one."""
        if self.checkpoint is None or self.checkpoint.step != done:
            journal = self.feed.journal.to_plain()
            meta = {"identity": self.feed.identity(done), "journal": journal, "packages": package_versions()}
            self.store.save(done, self.distributed.state(), meta)
            self.checkpoint = self.store.wait()
            assert self.checkpoint
            if watch:
                watch.saved(done, self.checkpoint.folder)
        return self.checkpoint

    def look(self, done: int, watch: Watch | None) -> None:
        """Validate and draw samples where that is due after `done` steps."""
        last = done == self.phases.total_steps
        samples, validation = self.config.monitor.samples, self.config.monitor.validation
        validates = self.config.data.held_out and due(done, validation.every_steps, last=last)
        draws = samples.prompts and due(done, samples.every_steps, last=last)
        if not (validates or draws):
            return
        with self.distributed.evaluation_weights():
            if validates:
                self.validate(done, watch)
            if watch and draws:  # the other ranks wait at their next collective
                autocast = self.distributed.autocast()
                watch.grid(done, sample_grid(self.pipeline, self.tokenizer, self.prompt_encoder, samples, autocast))

    def validate(self, done: int, watch: Watch | None) -> None:
        """Take the loss on the samples that are held out."""
        began = time.perf_counter()
        step = TrainingStep(self.trainee, self.vae, self.objective, self.distributed.autocast())
        batches = self.feed.micro_batches(range(0), self.tokenizer, self.latents, self.config.diffusion)
        found = validate(self.held_out(max(done - 1, 0)), batches, step.errors, self.distributed)
        if watch:
            watch.validated(done, {**found, "seconds": time.perf_counter() - began})

    def held_out(self, step: int) -> list[Fixed]:
        """What is validated in the phase of a step. Raises UserError where there is nothing."""
        count, timesteps = self.config.monitor.validation.samples, self.config.diffusion.timesteps
        return choose(self.feed.plan, self.feed.sources, self.feed.plan.epoch_of_step(step), count, timesteps)

    def finish(self, watch: Watch | None) -> None:
        """Export the model and draw the curves."""
        with self.distributed.evaluation_weights():
            if watch:
                folder = watch.folder / "export"
                export(self.pipeline, folder, model=self.config.model, steps=self.phases.total_steps)
                watch.say(f"curves   {watch.curves()}\nsamples  {watch.folder / 'samples'}\nmodel    {folder}")
        self.distributed.barrier()


def due(done: int, every_steps: int, *, last: bool) -> bool:
    """Whether what is done every so many steps, at the start and at the end, is due; 0 is never."""
    return bool(every_steps) and (done % every_steps == 0 or last)
