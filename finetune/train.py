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
from finetune.config import Config, policies, resolved
from finetune.data.loader import LatentShape
from finetune.data.prepare import PlanSettings
from finetune.data.preparer import BadSample
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.errors import UserError
from finetune.feed import Batches, Feed
from finetune.model.assemble import Trainee
from finetune.model.families import load_components
from finetune.model.text import PromptTokenizer, load_tokenizer
from finetune.monitor.samples import sample_grid
from finetune.monitor.watch import Watch
from finetune.optim.optimizers import build_optimizer
from finetune.phases import Phases, trains_text_encoder
from finetune.step import TrainingStep, trial_batch


def train(config: Config) -> None:
    """Train a recipe from where its run's last checkpoint left off, and export what comes out.

    Raises:
        UserError: something in the recipe, the data, the model or the run's folder has to be mended first.
    """
    run = Run(config)
    try:
        run.trial()
        start = run.resume()
        with run.watch(start) as watch:
            run.fit(start, watch)
            run.finish(watch)
    finally:
        run.distributed.close()


class Run:
    """The parts of a run, as one rank sees them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        batch = config.train
        self.distributed = Distributed(
            config.strategy,
            micro_batch=batch.micro_batch,
            global_batch=batch.global_batch,
            max_grad_norm=config.optim.max_grad_norm,
        )
        self.damaged: list[str] = []
        self.store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoint.keep, self.distributed)
        settings = PlanSettings(batch.micro_batch, batch.global_batch, config.run.seed)
        self.feed = Feed(config.data, policies(config), settings, config.run_folder, self.distributed)
        self.checkpoint = self.find_checkpoint()
        saved, done = (self.checkpoint.meta["journal"], self.checkpoint.step) if self.checkpoint else (None, 0)
        self.feed.begin(saved, done)
        self.phases = Phases(config.phases, config.optim, self.feed.plan)

        self.tokenizer = PromptTokenizer(load_tokenizer(config.model), config.model.max_tokens)
        self.feed.check_prompts(self.tokenizer)
        self.components = load_components(config.model)
        self.latents = LatentShape(self.components.latent_channels, self.components.vae_factor)
        trains_text = trains_text_encoder(config.phases, config.optim)
        trainee = Trainee(self.components, config.model.clip_skip, trains_text)
        groups = trainee.parameter_groups()
        self.groups = list(groups)
        wrapped = self.distributed.prepare(trainee, build_optimizer(config.optim, groups.values()))
        vae = self.components.vae.to(self.distributed.device).eval().requires_grad_(False)
        objective = Objective(config.diffusion).to(self.distributed.device)
        self.step = TrainingStep(wrapped, vae, objective, self.distributed.autocast())
        self.pipeline = build_pipeline(
            trainee.unet, vae, trainee.text_encoder, self.components.tokenizer, config.diffusion
        )

    def find_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint of the run. Raises UserError where the run may not go on from it."""
        checkpoint = self.store.newest(self.damaged.append)
        if checkpoint is None:
            return None
        if self.config.resume == "never":
            raise UserError(f"{checkpoint.folder} exists but resume=never: give another run.name, or resume=auto")
        check_identity(checkpoint, self.feed.identity)
        return checkpoint

    def trial(self) -> None:
        """Take a step of the largest bucket and the longest prompt at rate 0 and forget it, so that memory runs out in
        the first minute or never. Raises UserError where it does, or where the model gives no finite loss."""
        plan = self.feed.plan
        width, height = max((plan.sizes[bucket] for bucket in plan.buckets), key=lambda size: size.prod())
        micro_batch = self.config.train.micro_batch
        batch = trial_batch(self.tokenizer.longest(micro_batch), int(width), int(height), self.latents)
        try:
            loss = self.step.loss(batch.to(self.distributed.device))
            self.distributed.backward(loss, last=True)
            self.distributed.step([0.0] * len(self.groups))
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"a micro-batch of {micro_batch} pictures of {width}×{height} px with the longest prompt does not fit "
                "into the GPU's memory: lower train.micro_batch, set model.gradient_checkpointing=true, or train fewer "
                "pixels (data=px512)"
            ) from error
        self.distributed.discard_optimizer_state()
        if not torch.isfinite(loss):
            raise UserError(f"the model in {self.config.model.path} gives a loss of {loss.item()}: check its weights")

    def resume(self) -> int:
        """Load the checkpoint that was found; the number of steps that it has done."""
        if self.checkpoint is None:
            return 0
        self.distributed.load_state(self.checkpoint.read, self.checkpoint.world)
        return self.checkpoint.step

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
        for source, forms in self.feed.forms(self.feed.plan.epoch_of_step(start)).items():
            watch.event("prompts", source=source, **forms)
            watch.say(f"prompts  {source}: " + ", ".join(f"{share:.1%} {form}" for form, share in forms.items()))
        for sentence in self.damaged:
            watch.event("damaged checkpoint", reason=sentence)
            watch.say(f"passed over a damaged checkpoint: {sentence}")
        return watch

    def fit(self, start: int, watch: Watch | None) -> None:
        """Train from step `start` to the last, stretch by stretch: at the borders between them the data may change."""
        bad: list[BadSample] = []
        if start == 0:
            self.sample(0, watch)
        while start < (total := self.phases.total_steps):
            stretch = range(start, min(self.feed.border(start) or total, total))
            with self.batches(stretch) as batches:
                for step in stretch:
                    batches.reached(step)
                    self.train_step(step, batches, bad, watch)
            start = stretch.stop
            if start < total:
                self.flush(bad, watch)
                self.renew(start, watch)

    def train_step(self, step: int, batches: Batches, bad: list[BadSample], watch: Watch | None) -> None:
        """Train a step counted from 0, and do what is due after it."""
        began = time.perf_counter()
        loss, waited_s = self.accumulate(batches, bad)
        rates = self.phases.rates(step)
        grad_norm = self.distributed.step([rates[group] for group in self.groups])
        done, total = step + 1, self.phases.total_steps
        if watch:
            values = self.metrics(step, loss, grad_norm, rates)
            seconds = {"data_wait_s": waited_s, "step_s": time.perf_counter() - began}
            watch.record({**values, **seconds}, self.feed.plan.step(step))
        saves = done % self.config.checkpoint.every_steps == 0 or done == total
        if saves or done % self.config.monitor.flush_every_steps == 0:
            self.flush(bad, watch)
        if saves:
            self.save(done, watch)
        every = self.config.monitor.samples.every_steps
        if every and (done % every == 0 or done == total):
            self.sample(done, watch)

    def batches(self, steps: range) -> AbstractContextManager[Batches]:
        """This rank's micro-batches of some steps."""
        return self.feed.batches(
            steps,
            self.tokenizer,
            self.latents,
            timesteps=self.config.diffusion.timesteps,
            pin=self.distributed.device.type == "cuda",
        )

    def renew(self, step: int, watch: Watch | None) -> None:
        """Take in what has changed in the data by a border; what cannot be used is passed over with an event."""
        try:
            journal = self.feed.changes(step)
        except UserError as error:
            if watch:
                watch.event("data change passed over", step=step, reason=str(error))
            return
        if journal is None:
            return
        self.feed.renew(journal)
        self.phases = Phases(self.config.phases, self.config.optim, self.feed.plan)
        if watch:
            watch.data_changed(step, self.feed.journal, self.phases.total_steps)

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
            "lr": {group: rates[group] for group in self.groups},
            "phase": self.phases.number(step),
        }

    def flush(self, bad: list[BadSample], watch: Watch | None) -> None:
        """Write what was recorded since the last flush."""
        gathered = self.distributed.gather(bad)
        if watch:
            watch.flush(chain.from_iterable(gathered))
        bad.clear()

    def save(self, done: int, watch: Watch | None) -> None:
        """Save a checkpoint after `done` steps."""
        journal = self.feed.journal.to_plain()
        meta = {"identity": self.feed.identity, "journal": journal, "packages": package_versions()}
        checkpoint = self.store.save(done, self.distributed.state(), meta)
        if watch:
            watch.saved(done, checkpoint)

    def sample(self, done: int, watch: Watch | None) -> None:
        """Draw the recipe's prompts with the model as it is; the other ranks wait at their next collective."""
        samples = self.config.monitor.samples
        if watch and samples.every_steps and samples.prompts:
            clip_skip, autocast = self.config.model.clip_skip, self.distributed.autocast()
            watch.grid(done, sample_grid(self.pipeline, self.tokenizer, clip_skip, samples, autocast))

    def finish(self, watch: Watch | None) -> None:
        """Export the model and draw the curves."""
        if watch:
            folder = watch.folder / "export"
            export(self.pipeline, folder, model=self.config.model, steps=self.phases.total_steps)
            watch.say(f"curves   {watch.curves()}\nsamples  {watch.folder / 'samples'}\nmodel    {folder}")
        self.distributed.barrier()
