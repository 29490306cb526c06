"""Opening a run: its lock, its last checkpoint, its parts, and what watches over it, in this order."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune.checkpoint.search import Report
from finetune.checkpoint.store import Checkpoint, CheckpointStore
from finetune.config import Config, resolved
from finetune.distributed import Distributed
from finetune.errors import UserError
from finetune.feed import NOTES
from finetune.health.pulse import FOLDER as PULSES
from finetune.health.pulse import Beat, Pulse, clear_pulses, read_pulses
from finetune.health.stalls import FOLDER as STALLS
from finetune.health.stalls import untold
from finetune.health.watchdog import Watchdog
from finetune.lifecycle.lock import RunLock, locked
from finetune.lifecycle.starts import Start, started
from finetune.monitor.alerts.places import places
from finetune.monitor.alerts.watcher import watched
from finetune.monitor.events import EVENTS, EventLog
from finetune.monitor.watch import Watch
from finetune.parts import Parts
from finetune.ranks import on_main


@dataclass(frozen=True)
class Opening:
    """A run that can begin, or go on."""

    parts: Parts
    store: CheckpointStore
    report: Report
    """What tells of a checkpoint that is passed over or fetched."""
    lock: RunLock
    start: Start
    pulse: Pulse
    watch: Watch | None
    """What watches the run; None on ranks other than the first."""

    def renew(self, step: int) -> None:
        """Take in what has changed in the data by a border; what cannot be used is passed over with an event."""
        parts, watch = self.parts, self.watch
        try:
            journal = parts.feed.changes(step, parts.phases_of)
        except UserError as error:
            if watch:
                watch.event("data change passed over", step=step, reason=str(error))
            return
        if journal is None:
            return
        parts.take_up(journal)
        if watch:
            watch.data_changed(step, journal, parts.total_steps)


@contextmanager
def opened(config: Config, distributed: Distributed) -> Iterator[Opening]:
    """Within it the run is this launch's own.

    Raises:
        UserError: something in the recipe, the data, the model or the run's folder has to be mended first.
    """
    folder = config.run_folder
    on_main(distributed, lambda: bool(places(config.monitor.alerts.to)))
    with (
        locked(folder, distributed, say) as lock,
        watched(folder, config.monitor.alerts) if distributed.is_main else nullcontext(),
        ExitStack() as within,
    ):
        events = EventLog(folder / EVENTS)
        with failure_told(events, distributed):
            opening = opened_within(within, config, distributed, events, lock)
        if opening.watch:
            tell_beginning(opening.watch, opening.parts)
        yield opening


def opened_within(
    within: ExitStack, config: Config, distributed: Distributed, events: EventLog, lock: RunLock
) -> Opening:
    """What `opened` gives, with all that has to be closed again in `within`."""
    folder, health = config.run_folder, config.health
    store = CheckpointStore(folder / "checkpoints", config.checkpoint, distributed.side_channel())
    report = partial(tell, events)
    checkpoint = find_checkpoint(config, store, report)
    before = on_main(distributed, lambda: taken_pulse(folder / PULSES))
    start = within.enter_context(
        started(
            folder,
            distributed,
            checkpoint.step if checkpoint else 0,
            killed_at=before.step if before else 0,
            killed_by=f"killed in {before.activity}" if before else "killed before it began",
            max_crashes_at_step=config.run.max_crashes_at_step,
        )
    )
    pulse = within.enter_context(closing(Pulse(folder / PULSES, distributed.rank)))
    within.enter_context(
        Watchdog(
            pulse,
            folder,
            world=distributed.world,
            stall_s=health.stall_s,
            notes=folder / NOTES,
            tell=partial(tell_stall, events) if distributed.is_main else None,
        )
    )
    pulse.at(checkpoint.step if checkpoint else 0, "starting")
    parts = Parts(config, distributed, checkpoint)
    checkpoint_bytes = sum(distributed.gather(parts.state_bytes))
    store.check_room(checkpoint_bytes)
    watch = within.enter_context(new_watch(parts, checkpoint_bytes)) if distributed.is_main else None
    return Opening(parts, store, report, lock, start, pulse, watch)


@contextmanager
def failure_told(events: EventLog, distributed: Distributed) -> Iterator[None]:
    """What ends a start within it is an event: nothing else would tell of a run that can't be opened any more."""
    try:
        yield
    except Exception as error:
        if distributed.is_main:
            events.write("failed", reason=str(error) or type(error).__name__)
        raise


def find_checkpoint(config: Config, store: CheckpointStore, report: Report) -> Checkpoint | None:
    """The newest whole checkpoint of the run. Raises UserError where there is one and resume=never.

    Args:
        report: told of what is passed over or fetched.
    """
    checkpoint = store.newest(report)
    if checkpoint and config.resume == "never":
        raise UserError(f"{checkpoint.folder} exists but resume=never: give another run.name, or resume=auto")
    return checkpoint


def tell(events: EventLog, kind: str, sentence: str) -> None:
    """An event that the user reads of at once as well."""
    events.write(kind, reason=sentence)
    say(f"{kind}: {sentence}")


def new_watch(parts: Parts, checkpoint_bytes: int) -> Watch:
    """What watches a run.

    Args:
        checkpoint_bytes: room that a checkpoint takes.
    """
    config = parts.config
    return Watch(
        config.run_folder,
        config.run.name,
        config.monitor,
        resolved(config),
        parts.feed.journal,
        notes=parts.feed.notes,
        done_steps=parts.done,
        total_steps=parts.total_steps,
        global_batch=config.train.global_batch,
        max_bad_share=config.data.max_bad_share,
        checkpoint_bytes=checkpoint_bytes,
        looked=parts.looked,
    )


def tell_beginning(watch: Watch, parts: Parts) -> None:
    """Tell what is to be known when a run begins or goes on."""
    feed, done = parts.feed, parts.done
    for facts in untold(parts.config.run_folder / STALLS):
        watch.event("stalled rank", **facts)
    watch.phase(done, parts.phases.number(done), parts.phases.at(done).facts, changed=False)
    for source, forms in feed.forms(feed.plan.epoch_of_step(done)).items():
        watch.event("prompts", source=source, **forms)
        watch.say(f"prompts  {source}: " + ", ".join(f"{share:.1%} {form}" for form, share in forms.items()))
    tell_filling(watch, parts)
    if advice := parts.objective.neglect:
        watch.event("objective", advice=advice)
        watch.say(f"loss     {advice}")


def tell_filling(watch: Watch, parts: Parts) -> None:
    """Tell which blocks compute their activations again, where the run has chosen that."""
    if parts.filling:
        watch.event("checkpointing", chosen=str(parts.filling), blocks=parts.filling.checkpointed)
        watch.say(f"memory   {parts.filling}")


def taken_pulse(folder: Path) -> Beat | None:
    """Where rank 0 of the start before this one was when it ended; then all ranks' pulses are forgotten."""
    beats = read_pulses(folder)
    clear_pulses(folder)
    return beats[0] if beats else None


def tell_stall(events: EventLog, facts: Mapping[str, Any]) -> None:
    """An event, written by the watchdog before it ends the process."""
    events.write("stalled rank", **facts)


def say(sentence: str) -> None:
    """Tell the user something before the run is watched."""
    print(sentence, file=sys.stderr, flush=True)
