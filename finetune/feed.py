"""What a run is fed with: its data as the journal has it, and this rank's batches of any steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.data.ahead import Ahead, check_cache, is_first_on_machine
from finetune.data.batch import Batch, LatentShape, Packed
from finetune.data.config import DataConfig
from finetune.data.journal import Journal
from finetune.data.latent_sets import check_buckets
from finetune.data.loader import MicroBatches, Tokenizer, open_loader
from finetune.data.plan import PLAN_VERSION, Plan
from finetune.data.prepare import DataSet
from finetune.data.preparer import Preparer
from finetune.data.prompts.forms import average_mix
from finetune.data.prompts.length import TokenLimit
from finetune.data.prompts.prompter import Policy, checked_limit
from finetune.data.shapes import PlanSettings
from finetune.diffusion.config import DiffusionConfig
from finetune.ranks import Ranks, on_main

KEPT, NOTES = "data", "waiting"
"""Folders of a run's folder: copies of overlays, and the notes of processes that wait for data."""


class Feed:
    """The data of a run, which may change at the borders of epochs."""

    def __init__(
        self,
        data: DataConfig,
        policies: Sequence[Policy],
        settings: PlanSettings,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        """Open the run's indexes.

        Args:
            policies: what each source asks for, in order.
            folder: the run's folder.

        Raises:
            UserError: an index is missing, damaged or out of reach.
        """
        self._data = data
        self._settings = settings
        self.notes = folder / NOTES
        self._kept = folder / KEPT
        self._ranks = ranks
        self._policies = policies
        self._dataset = self._opened()

    def begin(self, saved: Mapping[str, Any] | None, step: int) -> None:
        """Take up the data at a step, and check that it can be read.

        Args:
            saved: the journal of the checkpoint that the run goes on from; None where it begins.

        Raises:
            UserError: the data is not what the run began with, or cannot be used.
        """
        dataset = self._dataset
        self._adopt(
            on_main(self._ranks, lambda: dataset.went_on(Journal.from_plain(saved), step) if saved else dataset.began())
        )
        self.sources.verify()
        check_buckets(self.plan, self.sources, self.plan.epoch_of_step(step))
        if self._data.mask == "member":
            self.sources.check_masks()
        check_cache(self.plan, self.sources, self._data.cache.windows_ahead, self._data.cache.size_gib)

    def identity(self, step: int) -> dict[str, Any]:
        """All that the plan's first `step` steps are a function of beside the journal, by the settings' names; a run
        can only go on while it is unchanged."""
        return plan_identity(self._data, self._settings, self.plan.settled(step))

    def check_prompts(self, tokenizer: Tokenizer) -> None:
        """Raise UserError where what a policy puts around every prompt is longer than a prompt may be."""
        self._limit(tokenizer)

    def forms(self, epoch: int) -> dict[str, dict[str, float]]:
        """By source, the share of each form among its prompts in an epoch, given which samples have tags and captions.
        Counted are the draws of all samples of the index, before any prompt is emptied."""
        shares = {}
        for source, policy in zip(self.sources.all, self._policies, strict=True):
            have_tags, have_captions = (source.have(kind, epoch) for kind in ("tags", "captions"))
            repeats = source.index.repeats
            shares[source.name] = average_mix(policy.prompter.config.mix, have_tags, have_captions, repeats)
        return shares

    def border(self, step: int) -> int | None:
        """The next step after `step` at which the data may change; None where it never does."""
        sources = self._data.all_sources.values()
        if self._data.on_change == "refuse" and not any(source.overlay.path for source in sources):
            return None
        return self.plan.first_step(self.plan.next_border(step + 1))

    def changes(self, step: int, check: Callable[[Plan], object]) -> Journal | None:
        """The journal with what has changed by a border, to be taken up by `renew`; None where nothing has.

        Args:
            check: raises UserError where a plan does not suit the run.

        Raises:
            UserError: what has changed cannot be used; on all ranks.
        """

        def decide() -> Journal:
            dataset = self._at_border()
            journal = dataset.went_on(self.journal, step)
            plan, sources = dataset.plan(journal), dataset.sources(journal)
            check(plan)
            sources.verify()
            check_buckets(plan, sources, plan.epoch_of_step(step))
            return journal

        journal = on_main(self._ranks, decide)
        return journal if journal != self.journal else None

    def renew(self, journal: Journal) -> None:
        """Go on with changed data."""
        self._dataset = self._at_border()
        self._adopt(journal)

    def remember(self, journal: Journal) -> None:
        """Go on with a journal that says more, but for its editions; what it replaces holds for micro-batches asked for
        anew."""
        self.journal = journal

    def micro_batches(
        self, steps: range, tokenizer: Tokenizer, latents: LatentShape, diffusion: DiffusionConfig
    ) -> MicroBatches:
        """What prepares this rank's micro-batches of some steps."""
        seed = self._settings.seed
        preparer = Preparer(self.plan, self.sources, self._data, self._policies, self._limit(tokenizer), seed)
        return MicroBatches(
            self.plan,
            self.journal,
            preparer,
            tokenizer,
            latents,
            diffusion=diffusion,
            seed=seed,
            steps=steps,
            rank=self._ranks.rank,
            world=self._ranks.world,
        )

    @contextmanager
    def batches(
        self, steps: range, tokenizer: Tokenizer, latents: LatentShape, *, diffusion: DiffusionConfig, pin: bool
    ) -> Iterator["Batches"]:
        """This rank's micro-batches of some steps, all of one phase."""
        data = self._data
        dataset = self.micro_batches(steps, tokenizer, latents, diffusion)
        # Worker processes are forked before the threads that fetch ahead are started, whose locks they would inherit.
        loader = open_loader(dataset, data, pin)
        windows = data.cache.windows_ahead if is_first_on_machine() else -1
        with Ahead(self.plan, self.sources, windows=windows, downloads=data.cache.downloads, step=steps.start) as ahead:
            yield Batches(map(Packed.unpacked, loader), ahead.reached)

    def _limit(self, tokenizer: Tokenizer) -> TokenLimit:
        return checked_limit(self._policies, tokenizer.count, tokenizer.max_tokens)

    def _at_border(self) -> DataSet:
        """The data as it is now, as far as it may have changed."""
        return self._opened() if self._data.on_change == "next_epoch" else self._dataset

    def _opened(self) -> DataSet:
        return DataSet(self._data, self._settings, self._kept, self.notes)

    def _adopt(self, journal: Journal) -> None:
        self.journal = journal
        self.plan = self._dataset.plan(journal)
        self.sources = self._dataset.sources(journal)


class Batches:
    """Micro-batches, step by step."""

    def __init__(self, batches: Iterator[Batch], reached: Callable[[int], None]) -> None:
        self._batches = batches
        self.reached = reached
        """To be told of every step that begins."""

    def __next__(self) -> Batch:
        return next(self._batches)


def plan_identity(data: DataConfig, settings: PlanSettings, settled: Sequence[int]) -> dict[str, Any]:
    """All that the plan is a function of beside the journal, as far as shapes that begin at other epochs than those
    `settled` do not matter yet; by the settings' names."""
    first, *later = settings.shapes
    return {
        "plan_version": PLAN_VERSION,
        "run.seed": settings.seed,
        "train.global_batch": settings.global_batch,
        "train.micro_batch": first.micro_batch,
        "data.buckets": asdict(first.buckets),
        "phases that change the data's shape": [asdict(shape) for shape in later if shape.epoch in settled],
        "data.window_shards": data.window_shards,
        "data.held_out": data.held_out,
        "data.sources and their repeats": [[name, source.repeats] for name, source in data.all_sources.items()],
    }
