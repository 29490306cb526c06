"""What a run is made of, as one rank sees it: built in the order in which the parts are needed, so that whatever can be
found wrong without the model is found before it is loaded."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from functools import partial
from math import prod

import torch
from torch import Tensor

from finetune.checkpoint.export import build_pipeline
from finetune.checkpoint.resume import check_format, check_identity, check_model, parameter_shapes
from finetune.checkpoint.store import Checkpoint, state_bytes
from finetune.config import Config, defaults, phases, plan_settings, policies, resolved
from finetune.control.requests import keep_setting, kept_settings
from finetune.data.batch import Batch, LatentShape
from finetune.data.buckets import bucket_sizes
from finetune.data.journal import Journal
from finetune.data.latent_sets import check_vae
from finetune.data.plan import Plan
from finetune.diffusion.objective import Objective
from finetune.distributed import Distributed
from finetune.distributed.fragments import saved_parameters
from finetune.engine import Engine
from finetune.errors import UserError
from finetune.feed import Batches, Feed
from finetune.flat import differences, flattened
from finetune.lifecycle.changes import check_changes, recipe_changes
from finetune.live import Live, recalled
from finetune.memory.activations import Activations, Size
from finetune.memory.filling import Filling, OutOfMemory, fill, within_memory
from finetune.model.assemble import Trainee
from finetune.model.checkpointing import blocks, checkpoint_blocks
from finetune.model.families import load_components, load_skeleton
from finetune.model.graphs import Graphs
from finetune.model.text import PromptTokenizer, load_tokenizers
from finetune.model.vae import encoder_hash
from finetune.monitor.flops import ModelFlops
from finetune.monitor.recipe import saved_recipe
from finetune.optim.optimizers import check_optimizer
from finetune.phases import Phase, Phases
from finetune.ranks import on_main
from finetune.step import TrainingStep, trial_batch
from finetune.validation import choose


class Parts:
    """The data, the model and the engine of a run, at the checkpoint that it goes on from."""

    def __init__(self, config: Config, distributed: Distributed, checkpoint: Checkpoint | None) -> None:
        """Build all of them.

        Args:
            checkpoint: what the run goes on from; None where it begins.

        Raises:
            UserError: something in the recipe, the data, the model or the run's folder has to be mended first.
        """
        self.config = config
        self.distributed = distributed
        self.checkpoint = checkpoint
        self.feed = Feed(config.data, policies(config), plan_settings(config), config.run_folder, distributed)
        self._live = Live(config)
        self.changed = False
        """Whether the recipe has changed since the checkpoint in what it trains."""
        self._begin_data()
        self._recall_settings()
        unfolded = phases(config)
        self.phases = self.phases_of(self.feed.plan)
        for number, phase in enumerate(unfolded, 1):
            check_optimizer(phase.optim)
            if config.data.held_out:
                epoch = self.feed.plan.epoch_of_step(self.phases.span(number).start)
                choose(self.feed.plan, self.feed.sources, epoch, count=1, timesteps=1)  # whether there is anything

        tokenizers = load_tokenizers(config.model)
        self.tokenizer = PromptTokenizer(tokenizers, config.model.max_tokens, config.model.pad_chunks)
        self.feed.check_prompts(self.tokenizer)
        self.objective = Objective(config.diffusion).to(distributed.device)
        components = load_components(config.model)
        if config.data.latents:
            check_vae(self.feed.sources, encoder_hash(components.vae))
        self.latents = LatentShape(components.latent_channels, components.vae_factor)
        self.trainee = Trainee(components)
        self.shapes = parameter_shapes(self.trainee)
        if self.checkpoint:
            check_model(self.checkpoint, self.shapes)
        self.prompt_encoder = components.prompt_encoder
        saved = saved_parameters(self.trainee, *self.checkpoint.ranks) if self.checkpoint else {}
        batch = config.train.global_batch
        self.engine = Engine(self.trainee, unfolded, distributed, config.ema, global_batch=batch, saved=saved)
        self.vae = components.vae.to(distributed.device).eval().requires_grad_(False)
        self.pipeline = build_pipeline(components, config.diffusion)
        self.graphs = Graphs(self.trainee.unet, self.vae.encoder) if config.model.compile else None

        self.build(self.phases.at(self.done))
        self.state_bytes = self._trial(self.done)
        """What a checkpoint takes of this rank, as far as the present phase goes."""
        if self.checkpoint:
            distributed.load_state(*self.checkpoint.ranks)

    @property
    def done(self) -> int:
        """The steps that the checkpoint has done; 0 where there is none."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def looked(self) -> bool:
        """Whether what is due after the steps that are done has been looked at."""
        return self.checkpoint is not None and bool(self.checkpoint.meta["looked"])

    @property
    def total_steps(self) -> int:
        """Where the run ends."""
        return self.phases.total_steps

    def build(self, phase: Phase) -> None:
        """Make the optimizer of a phase and wrap the model for it; their state has to be loaded afterwards."""
        wrapped = self.engine.build(phase)
        self.step = TrainingStep(wrapped, self.vae, self.objective, self.distributed.autocast())
        trained = [name for name, parameter in self.trainee.named_parameters() if parameter.requires_grad]
        self.flops = ModelFlops(self.config.model, trained, self.latents)
        fills = self.config.model.gradient_checkpointing == "auto" and self.distributed.device.type == "cuda"
        self.filling = self._fill(phase, trained) if fills else None
        """Which blocks compute their activations again, where that was left open."""

    def take_up(self, journal: Journal) -> None:
        """Go on with changed data."""
        self.feed.renew(journal)
        self.phases = self.phases_of(self.feed.plan)

    def phases_of(self, plan: Plan) -> Phases:
        """The phases laid out over another plan. Raises UserError where they do not suit it."""
        return Phases(phases(self.config), plan, self.feed.journal.settings)

    def live(self, done: int) -> Config:
        """The recipe once `done` steps are done, with what has been set by then but for rates, which phases have."""
        return self._live.at(self.feed.journal.settings, done)

    def steered(self, journal: Journal) -> Phases:
        """The phases under a journal in which something has been set. Raises UserError where that changes what trains,
        or a later phase cannot have it."""
        unfolded = phases(self.config)
        before, after = self.phases, Phases(unfolded, self.feed.plan, journal.settings)
        for number in range(1, len(unfolded) + 1):
            self._check_rates(before.at(after.span(number).stop - 1), after.at(after.span(number).stop - 1))
        return after

    def steer(self, journal: Journal, phases: Phases) -> None:
        """Go on with a journal in which something has been set, and the phases under it."""
        self.feed.remember(journal)
        self.phases = phases

    def batches(self, steps: range) -> AbstractContextManager[Batches]:
        """This rank's micro-batches of some steps."""
        pin = self.distributed.device.type == "cuda"
        return self.feed.batches(steps, self.tokenizer, self.latents, diffusion=self.config.diffusion, pin=pin)

    def grey(self, micro_batch: int, width: int, height: int) -> Batch:
        """The largest micro-batch of a size in pixels, with the longest prompts, of which nothing is read."""
        encoded = self.config.data.latents is not None
        return trial_batch(self.tokenizer.longest(micro_batch), width, height, self.latents, encoded=encoded)

    def _begin_data(self) -> None:
        """Open the data where the checkpoint left it. Raises UserError where it is not what the run was trained on, or
        the recipe has changed in what it trains."""
        if self.checkpoint is None:
            self.feed.begin(None, 0)
            return
        check_format(self.checkpoint)
        self.feed.begin(self.checkpoint.meta["journal"], self.checkpoint.step)
        check_identity(self.checkpoint, self.feed.identity(self.checkpoint.step))
        changes = recipe_changes(self.checkpoint.meta["config"], resolved(self.config), defaults())
        accepted = self.config.run.accept_changes
        self.changed = bool(check_changes(changes, self.checkpoint.folder, accepted=accepted))

    def _recall_settings(self) -> None:
        """Take up what was set after the checkpoint was saved, but for what the recipe has changed since."""
        run, now = self.config.run_folder, flattened(resolved(self.config))
        before, kept = on_main(self.distributed, lambda: (saved_recipe(run) or now, kept_settings(run)))
        journal, given_back = recalled(self.feed.journal, kept, differences(before, now), self.done)
        for one in given_back:
            on_main(self.distributed, partial(keep_setting, run, one.step, one.key, one.value))
        self.feed.remember(journal)

    def _check_rates(self, before: Phase, after: Phase) -> None:
        """Raise UserError where rates that are set would change what trains, or nothing."""
        if before.optim == after.optim:
            return
        if "steps" in (after.optim.schedule.name, after.optim.text_schedule.name):
            raise UserError("optim.schedule.steps gives the rates themselves, so that none can be set")
        if self.engine.groups(before) != self.engine.groups(after):
            raise UserError(
                "a rate that becomes 0 or was 0 changes what trains, which cannot be while a run goes on: stop it, and "
                "start it with another recipe and run.accept_changes=true"
            )

    def _fill(self, phase: Phase, trained: Collection[str]) -> Filling:
        """Checkpoint as few of the model's blocks as a phase's largest micro-batch leaves memory for."""
        width, height = max(bucket_sizes(phase.buckets).tolist(), key=prod)
        batch = self.grey(phase.micro_batch, width, height)
        activations = Activations(load_skeleton(self.config.model), trained, self.config.strategy.precision)
        counted = activations.blocks(Size(phase.micro_batch, width, height, self.tokenizer.max_chunks))
        return fill(
            self.distributed,
            self.distributed.device,
            counted,
            checkpoint=partial(checkpoint_blocks, self.trainee),
            fits=lambda: self._rehearsed(batch) is not None,
        )

    def _trial(self, start: int) -> int:
        """Take a step of the most pixels that any phase from here on has, with the longest prompt, copy what would be
        saved, and forget it, so that memory runs out in the first minute or, unless a later phase keeps more state,
        never. Returns the bytes that would be saved. Raises UserError where there is too little memory, or where the
        model gives no finite loss."""
        micro_batch, width, height = self.feed.plan.largest(start)
        if self.filling:  # for this phase's pictures, which may be smaller
            checkpoint_blocks(self.trainee, blocks(self.trainee))
        found = self._rehearsed(self.grey(micro_batch, width, height))
        if self.filling:
            checkpoint_blocks(self.trainee, self.filling.checkpointed)
        if found is None:
            raise UserError(
                f"a micro-batch of {micro_batch} pictures of {width}×{height} px with the longest prompt does not fit "
                "into the GPU's memory: lower train.micro_batch, set model.gradient_checkpointing=all and "
                "model.vae_slicing=true, or train fewer pixels (data=px512)"
            )
        loss, size = found
        if not torch.isfinite(loss):
            raise UserError(f"the model in {self.config.model.path} gives a loss of {loss.item()}: check its weights")
        return size

    def _rehearsed(self, batch: Batch) -> tuple[Tensor, int] | None:
        """The loss of a step that is forgotten, and the bytes that would be saved after it; None where it does not fit
        into the memory of some rank. Where gradients are accumulated the forward pass finds others there."""
        distributed = self.distributed
        forward = partial(within_memory, distributed, lambda: self.step.loss(self.step.prepare(batch)).weighted)
        try:
            if distributed.accumulation > 1 and not distributed.scales_loss:  # whose scale fits real gradients alone
                within_memory(distributed, partial(distributed.backward, forward(), last=False))
            loss = forward()
            return loss, state_bytes(within_memory(distributed, partial(distributed.rehearse, loss)))
        except OutOfMemory:
            distributed.skip()
            distributed.discard_optimizer_state()
            return None
