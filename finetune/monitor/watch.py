"""All that watches a run, on rank 0: metrics, events, status, ledger, trackers and the progress bar."""

import json
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from finetune.data.journal import Journal
from finetune.data.plan import MicroBatch
from finetune.data.preparer import BadSample
from finetune.errors import Preempted, Stopped
from finetune.flat import Changes, shown
from finetune.health.slow import Slow
from finetune.lifecycle.starts import end_before, starts_before
from finetune.monitor.alerts.disk import DiskCheck
from finetune.monitor.alerts.plateau import Plateau
from finetune.monitor.config import MonitorConfig
from finetune.monitor.curves import draw_curves
from finetune.monitor.events import EVENTS, EventLog
from finetune.monitor.files import read_lines, replace_text
from finetune.monitor.intervals import GROUPS, mean_deciles
from finetune.monitor.ledger import Ledger
from finetune.monitor.metrics import MetricsLog, Values
from finetune.monitor.page import PageBeside
from finetune.monitor.progress import ProgressBar
from finetune.monitor.recipe import keep_recipe
from finetune.monitor.rounds import Rounds
from finetune.monitor.samples.grid import save_grid
from finetune.monitor.status import StatusFile
from finetune.monitor.tally import Tally
from finetune.monitor.trackers import open_trackers
from finetune.monitor.trackers.alerts import TrackerAlerts
from finetune.monitor.trackers.tracker import Ended
from finetune.redact import redacted

SPEED_WINDOW_STEPS = 50
LOGS = ("metrics", "intervals", "validation")
"""Names of the files of lines by step."""
IN_STATUS = ("images_per_s", "step_s_p50", "data_wait_share", "gpu_memory_peak_gib", "eta_s")
"""Keys of the newest interval that status.json has too."""


class Watch:
    """Writes a run's folder. A context: how it is left decides the state that status.json ends with."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: MonitorConfig,
        recipe: dict[str, Any],
        journal: Journal,
        *,
        notes: Path,
        done_steps: int,
        total_steps: int,
        global_batch: int,
        max_bad_share: float,
        checkpoint_bytes: int,
        looked: bool,
    ) -> None:
        """Open the run's folder, and take back what it holds beyond `done_steps`.

        Args:
            recipe: the resolved recipe with its secrets blacked out.
            journal: the history of the run's data.
            notes: folder where processes that wait for data leave their notes.
            done_steps: steps of the checkpoint that is resumed from; 0 at the start.
            checkpoint_bytes: room that a checkpoint takes.
            looked: whether what is due after these has been validated.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._total_steps = total_steps
        self._global_batch = global_batch
        self._step_times: deque[float] = deque(maxlen=SPEED_WINDOW_STEPS)
        self._events = EventLog(folder / EVENTS)
        changes = keep_recipe(folder, recipe, done_steps)
        if changes:
            self._events.write("config changed", changes=changes)
        self._metrics, self._intervals, self._validation = (MetricsLog(folder / f"{name}.jsonl") for name in LOGS)
        self._unshown: list[Values] = []
        """Lines of metrics.jsonl since the last flush."""
        self._ledger = Ledger(folder / "ledger")
        superseded, shown = self._take_back(done_steps, looked=looked)
        self._tally = Tally(journal, starts_before(folder), max_bad_share)
        self._slow: set[int] = set()
        self.keep_journal(journal)
        self._trackers = open_trackers(
            config,
            folder,
            name,
            recipe,
            done_steps=done_steps,
            shown_step=shown,
            events=self._events,
        )
        self._alerts = TrackerAlerts(config.alerts, self._trackers)
        self._plateau = Plateau(config.alerts.plateau_steps)
        self._progress = ProgressBar(total_steps, done_steps)
        logs = (self._metrics, self._intervals, self._validation)
        disk = DiskCheck(folder, config.alerts.disk_free_gib)
        self._rounds = Rounds(logs, notes, disk, checkpoint_bytes, self.event, self.say)
        self._status = StatusFile(
            folder / "status.json",
            config.heartbeat_s,
            self._rounds,
            step=done_steps,
            total_steps=total_steps,
            name=name,
        )
        if config.serve_port:
            self._rounds.page = PageBeside(folder, config.serve_port)
        self._tell_beginning(done_steps, superseded, changes, excluded=len(journal.excluded(done_steps)))

    def __enter__(self) -> "Watch":
        self._status.update(state="running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        named: dict[type, Ended] = {
            type(None): "finished",
            Preempted: "preempted",
            Stopped: "stopped",
            KeyboardInterrupt: "stopped",
        }
        state = named.get(type(error), "failed")
        reason = {} if error is None else {"reason": redacted(str(error)) or type(error).__name__}
        # A full disk, which may be what has ended the run, must not take the place of what is raised.
        as_far_as_can_be = nullcontext() if error is None else suppress(OSError)
        self._status.update(**reason)
        with as_far_as_can_be:
            self.event(state, **reason)
        with as_far_as_can_be:
            self._status.close(state)  # before what may take long: who waits for the end may end this process
        self._progress.close()
        if self._rounds.page:
            self._rounds.page.close()
        self._trackers.close(state)
        for log in (self._metrics, self._intervals, self._validation):
            with as_far_as_can_be:
                log.close()

    def event(self, kind: str, **fields: Any) -> None:
        """Write down that something happened, and tell trackers where it is worth an alert."""
        self._alerts.take(self._events.write(kind, **fields))

    def say(self, text: str) -> None:
        """Print a line beside the progress bar."""
        self._progress.say(text)

    def record(self, values: Values, micro_batches: list[MicroBatch]) -> None:
        """Write a step's values down, and keep its draws until the next flush."""
        self._step_times.append(values["step_s"])
        images_per_s = self._global_batch * len(self._step_times) / sum(self._step_times)
        self._unshown.append(self._metrics.record({**values, "images_per_s": images_per_s}))
        self._ledger.record(values["step"], micro_batches)

    def flush(self, bad: Iterable[BadSample], figures: Values) -> None:
        """Write and show what was recorded since the last flush; there have to be steps.

        Args:
            bad: draws of all ranks in that time whose sample could not be used.
            figures: of the interval, as `combined` makes them, and `mfu`.

        Raises:
            UserError: more samples than the recipe allows could not be used.
        """
        for one in bad:
            self._ledger.substitute(one.step, one.slot, one.substitute)
            if self._tally.take(one):
                self.event("bad sample", **one._asdict())
        self._ledger.flush()
        lines, self._unshown = self._unshown, []
        last = lines[-1]
        eta_s = (self._total_steps - last["step"]) * self._global_batch / last["images_per_s"]
        place = {"step": last["step"], "epoch": last["epoch"], "eta_s": eta_s}
        # Before trackers have its steps, so that no kill has them sent twice.
        interval = self._intervals.record({**place, **figures, **self._tally.figures(last["updates"])})
        for line in lines:
            rates = {f"lr/{group}": rate for group, rate in line["lr"].items()}
            numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and k != "step"}
            self._trackers.log(line["step"], {**numbers, **rates})
            loss = None if line["skipped"] else line["loss"]
            if plateau := self._plateau.add(line["step"], line["phase"], loss):
                self.event("plateau", **plateau)
        self._track_interval(interval, mean_deciles(lines))
        self._show(last, interval)
        self._tally.check_bad(len(lines) * self._global_batch)

    def grid(self, step: int, size: str, grid: Image.Image) -> None:
        """Keep the grid of a size of samples, as 512x768."""
        save_grid(grid, self.folder / "samples", step, size)
        self._trackers.image(step, f"samples/{size}", grid)

    def validated(self, step: int, values: Values) -> None:
        """Keep a validation's figures."""
        self._validation.record({"step": step, **values})
        deciles = {f"validation/timesteps_{i}0%": loss for i, loss in enumerate(values["by_decile"])}
        aspects = {f"validation/{aspect}": loss for aspect, loss in values["by_aspect"].items()}
        distance = {"validation/ema_distance": values["ema_distance"]}
        figures = {"validation/loss": values["loss"], **deciles, **aspects, **distance}
        self._trackers.log(step, {name: loss for name, loss in figures.items() if loss is not None})
        self.say(f"validation after step {step:,}: loss {values['loss']:.5f} on {values['samples']} samples")

    def phase(self, step: int, number: int, facts: dict[str, Any], *, changed: bool) -> None:
        """Note which phase the run is in after a step, and whether it has just come to it."""
        self.event("phase", step=step, number=number, changed=changed, **facts)
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        self.say(f"phase {number} from step {step + 1:,} on: {told}")

    def saved(self, step: int, checkpoint: Path, seconds: float) -> None:
        """Note a checkpoint, written in so many seconds beside the training."""
        self._status.update(checkpoint=checkpoint.name, checkpoint_time=self._tally.saved(seconds))
        self.event("checkpoint", step=step, name=checkpoint.name, seconds=round(seconds, 3))

    def exported(self, step: int, path: Path, seconds: float, error: str | None) -> None:
        """Note what has come of an export beside the training."""
        self.event("export", step=step, path=str(path), seconds=round(seconds, 3), error=error)
        self.say(f"export of step {step:,} failed: {error}" if error else f"export of step {step:,}: {path}")

    def skipped(self, step: int, reason: str, keys: list[str]) -> None:
        """Note a step that changed nothing, and the samples that were drawn in it."""
        self._tally.skipped += 1
        self._status.update(skipped_steps=self._tally.skipped)
        self.event("skipped", step=step, reason=reason, keys=keys)
        self.say(f"step {step:,} changed nothing: {reason}")

    def rolled_back(self, step: int, to: int, reason: str) -> None:
        """Note that the weights are those after `step` steps again, and that the run goes on after step `to`; what was
        written of the steps in between is moved aside."""
        self._tally.rollbacks += 1
        superseded, _ = self._take_back(step, looked=True)
        self.event("rolled back", step=step, to=to, reason=reason, superseded_steps=superseded)
        self.say(f"rolled back to the weights after step {step:,}, going on after step {to:,}: {reason}")
        self._trackers.rolled_back(step)

    def slow_ranks(self, step: int, found: list[Slow]) -> None:
        """Note which ranks hold up the others; nothing while they are the same ones."""
        ranks = {one.rank for one in found}
        if found and ranks != self._slow:
            told = ", ".join(
                f"rank {one.rank} ({one.seconds:.2f} s a step, the others {one.others:.2f} s)" for one in found
            )
            self.event("slow rank", step=step, ranks=[one._asdict() for one in found])
            self.say(f"slow: {told}")
        self._slow = ranks

    def data_changed(self, step: int, journal: Journal, total_steps: int) -> None:
        """Note that another edition of the data, or another exclusion, holds from now on."""
        self._total_steps = total_steps
        self._progress.lengthen(total_steps)
        self._status.update(total_steps=total_steps)
        self.keep_journal(journal)
        edition = asdict(journal.editions[-1])
        self.event("data changed", step=step, excluded=len(journal.excluded(step)), **edition)

    def curves(self) -> Path:
        """Draw the whole run's curves."""
        metrics, intervals, validation = (read_lines(self.folder / f"{name}.jsonl") for name in LOGS)
        return draw_curves(metrics, intervals, validation, self.folder / "curves.png")

    def _tell_beginning(self, done_steps: int, superseded: int, changes: Changes, *, excluded: int) -> None:
        if done_steps:
            self.event("resumed", step=done_steps, superseded_steps=superseded, after=end_before(self.folder))
            self._progress.say(f"resumed after step {done_steps:,}")
        else:
            self.event("started", step=0)
        if changes:
            told = "; ".join(f"{key} was {shown(was)} and is {shown(now)}" for key, (was, now) in changes.items())
            self._progress.say(f"the recipe has changed since the last start: {told}")
        if excluded:
            self.event("samples excluded", step=done_steps, samples=excluded)
            self._progress.say(f"{excluded:,} samples are excluded")

    def _take_back(self, step: int, *, looked: bool) -> tuple[int, int | None]:
        """Take back what was written of the steps beyond `step`; how many these were, and up to which of them trackers
        have theirs, None where they have none."""
        steps, intervals = self._metrics.supersede(step), self._intervals.supersede(step)
        self._validation.supersede(step if looked else step - 1)
        self._ledger.supersede(step)
        return len(steps), intervals[-1]["step"] if intervals else None

    def keep_journal(self, journal: Journal) -> None:
        """Write journal.json, where tools find it; what a run goes on from is in its checkpoints."""
        replace_text(self.folder / "journal.json", json.dumps(journal.to_plain(), indent=1))

    def _track_interval(self, interval: Values, deciles: list[float | None]) -> None:
        numbers = {f"{group}/{key}": interval[key] for group, keys in GROUPS.items() for key in keys}
        numbers |= {f"loss/timesteps_{i}0%": loss for i, loss in enumerate(deciles)}
        numbers |= {f"buckets/{bucket}": samples for bucket, samples in interval["buckets"].items()}
        numbers["data/bad_samples"] = self._tally.bad.total()
        there = {name: float(number) for name, number in numbers.items() if number is not None}
        self._trackers.log(interval["step"], there)

    def _show(self, line: Values, interval: Values) -> None:
        shown = {key: line[key] for key in ("step", "loss", "epoch")} | {key: interval[key] for key in IN_STATUS}
        self._status.update(bad_samples=self._tally.bad.total(), excluded_draws=self._tally.excluded, **shown)
        loss = float("nan") if line["loss"] is None else line["loss"]
        self._progress.update(line["step"], loss, line["images_per_s"], interval["eta_s"])
