"""All that watches a run, on rank 0: metrics, events, status, ledger, trackers and the progress bar."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from finetune.data.journal import EXCLUDED, QUARANTINED, Journal
from finetune.data.outage import read_notes
from finetune.data.plan import MicroBatch
from finetune.data.preparer import BadSample
from finetune.errors import Preempted, UserError
from finetune.flat import Changes, differences, flattened
from finetune.health.slow import Slow
from finetune.lifecycle.starts import starts_before
from finetune.monitor.config import MonitorConfig
from finetune.monitor.curves import draw_curves
from finetune.monitor.events import EventLog
from finetune.monitor.files import read_lines, replace_text
from finetune.monitor.intervals import GROUPS, mean_deciles
from finetune.monitor.ledger import Ledger
from finetune.monitor.metrics import MetricsLog, Values
from finetune.monitor.progress import ProgressBar
from finetune.monitor.samples import save_grid
from finetune.monitor.status import StatusFile
from finetune.monitor.trackers import open_trackers
from finetune.redact import redacted

SPEED_WINDOW_STEPS = 50
LOGS = ("metrics", "intervals", "validation")
"""Names of the files of lines by step."""
IN_STATUS = ("images_per_s", "step_s_p50", "data_wait_share", "gpu_memory_peak_gib", "eta_s")
"""Keys of the newest interval that status.json has too."""
EVENTS = "events.jsonl"
"""Of a run's folder."""


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
        looked: bool,
    ) -> None:
        """Open the run's folder, and take back what it holds beyond `done_steps`.

        Args:
            recipe: the resolved recipe with its secrets blacked out.
            journal: the history of the run's data.
            notes: folder where processes that wait for data leave their notes.
            done_steps: steps of the checkpoint that is resumed from; 0 at the start.
            looked: whether what is due after these has been validated.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._total_steps = total_steps
        self._global_batch = global_batch
        self._max_bad_share = max_bad_share
        self._bad: Counter[str] = Counter()
        self._excluded = 0
        self._drawn = 0
        self._step_times: deque[float] = deque(maxlen=SPEED_WINDOW_STEPS)
        self._events = EventLog(folder / EVENTS)
        changes = self._save_recipe(recipe, done_steps)
        self._metrics, self._intervals, self._validation = (MetricsLog(folder / f"{name}.jsonl") for name in LOGS)
        self._unshown: list[Values] = []
        """Lines of metrics.jsonl since the last flush."""
        self._ledger = Ledger(folder / "ledger")
        superseded = self._take_back(done_steps, looked=looked)
        self._notes = notes
        self._paused = False
        self._skipped, self._rollbacks = len(journal.skips), len(journal.jumps)
        self._restarts = starts_before(folder)
        self._checkpoint: tuple[float, float] | None = None
        """When the last one was finished, in seconds since 1970, and how many it took."""
        self._slow: set[int] = set()
        for note in notes.glob("*.json"):  # of processes that were killed
            note.unlink()
        self.keep_journal(journal)
        self._trackers = open_trackers(config, folder, name, recipe, done_steps, self._events)
        self._progress = ProgressBar(total_steps, done_steps)
        self._status = StatusFile(
            folder / "status.json",
            config.heartbeat_s,
            self._heartbeat,
            step=done_steps,
            total_steps=total_steps,
            name=name,
        )
        self._tell_beginning(done_steps, superseded, changes, excluded=len(journal.excluded(done_steps)))

    def _tell_beginning(self, done_steps: int, superseded: int, changes: Changes, *, excluded: int) -> None:
        if done_steps:
            self.event("resumed", step=done_steps, superseded_steps=superseded)
            self._progress.say(f"resumed after step {done_steps:,}")
        else:
            self.event("started", step=0)
        if changes:
            told = "; ".join(f"{key} was {before} and is {after}" for key, (before, after) in changes.items())
            self._progress.say(f"the recipe has changed since the last start: {told}")
        if excluded:
            self.event("samples excluded", step=done_steps, samples=excluded)
            self._progress.say(f"{excluded:,} samples are excluded")

    def __enter__(self) -> "Watch":
        self._status.update(state="running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        named = {type(None): "finished", Preempted: "preempted", KeyboardInterrupt: "stopped"}
        state = named.get(type(error), "failed")
        reason = {} if error is None else {"reason": redacted(str(error)) or type(error).__name__}
        self._status.update(**reason)
        self.event(state, **reason)
        self._status.close(state)  # before what may take long: who waits for the end may end this process
        self._progress.close()
        self._trackers.close()
        for log in (self._metrics, self._intervals, self._validation):
            log.close()

    def event(self, kind: str, **fields: Any) -> None:
        """Write down that something happened."""
        self._events.write(kind, **fields)

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
            if one.reason in (EXCLUDED, QUARANTINED):
                self._excluded += 1
            else:
                self._bad[one.reason] += 1
                self.event("bad sample", **one._asdict())
        self._ledger.flush()
        lines, self._unshown = self._unshown, []
        for line in lines:
            rates = {f"lr/{group}": rate for group, rate in line["lr"].items()}
            numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and k != "step"}
            self._trackers.log(line["step"], {**numbers, **rates})
        interval = self._intervals.record({"step": lines[-1]["step"], **figures, **self._so_far(lines[-1])})
        self._track_interval(interval, mean_deciles(lines))
        self._show(lines[-1], interval)
        self._judge(lines)

    def grid(self, step: int, grid: Image.Image) -> None:
        """Keep a grid of samples."""
        save_grid(grid, self.folder / "samples", step)
        self._trackers.image(step, "samples", grid)

    def validated(self, step: int, values: Values) -> None:
        """Keep a validation's figures."""
        self._validation.record({"step": step, **values})
        deciles = {f"validation/timesteps_{i}0%": loss for i, loss in enumerate(values["by_decile"])}
        aspects = {f"validation/{aspect}": loss for aspect, loss in values["by_aspect"].items()}
        distance = {"validation/ema_distance": values["ema_distance"]}
        figures = {"validation/loss": values["loss"], **deciles, **aspects, **distance}
        self._trackers.log(step, {name: loss for name, loss in figures.items() if loss is not None})
        self.say(f"validation after step {step:,}: loss {values['loss']:.5f} on {values['samples']} samples")

    def phase(self, step: int, number: int, facts: dict[str, Any]) -> None:
        """Note which phase the run is in after a step."""
        self.event("phase", step=step, number=number, **facts)
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        self.say(f"phase {number} from step {step + 1:,} on: {told}")

    def saved(self, step: int, checkpoint: Path, seconds: float) -> None:
        """Note a checkpoint, written in so many seconds beside the training."""
        self._checkpoint = time.time(), seconds
        self._status.update(checkpoint=checkpoint.name, checkpoint_time=self._checkpoint[0])
        self.event("checkpoint", step=step, name=checkpoint.name, seconds=round(seconds, 3))

    def exported(self, step: int, path: Path, seconds: float, error: str | None) -> None:
        """Note what has come of an export beside the training."""
        self.event("export", step=step, path=str(path), seconds=round(seconds, 3), error=error)
        self.say(f"export of step {step:,} failed: {error}" if error else f"export of step {step:,}: {path}")

    def skipped(self, step: int, reason: str, keys: list[str]) -> None:
        """Note a step that changed nothing, and the samples that were drawn in it."""
        self._skipped += 1
        self._status.update(skipped_steps=self._skipped)
        self.event("skipped", step=step, reason=reason, keys=keys)
        self.say(f"step {step:,} changed nothing: {reason}")

    def rolled_back(self, step: int, to: int, reason: str) -> None:
        """Note that the weights are those after `step` steps again, and that the run goes on after step `to`; what was
        written of the steps in between is moved aside."""
        self._rollbacks += 1
        superseded = self._take_back(step, looked=True)
        self.event("rolled back", step=step, to=to, reason=reason, superseded_steps=superseded)
        self.say(f"rolled back to the weights after step {step:,}, going on after step {to:,}: {reason}")
        self._trackers.alert("rolled back", reason)

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

    def _take_back(self, step: int, *, looked: bool) -> int:
        """Take back what was written of the steps beyond `step`; how many metric lines that were."""
        superseded = self._metrics.supersede(step)
        self._intervals.supersede(step)
        self._validation.supersede(step if looked else step - 1)
        self._ledger.supersede(step)
        return superseded

    def keep_journal(self, journal: Journal) -> None:
        """Write journal.json, where tools find it; what a run goes on from is in its checkpoints."""
        replace_text(self.folder / "journal.json", json.dumps(journal.to_plain(), indent=1))

    def _heartbeat(self) -> dict[str, Any]:
        """Make sure of what has been written; what status.json says over its fields while processes wait for data."""
        with suppress(OSError):  # a full disk is told by the next line that is written
            for log in (self._metrics, self._intervals, self._validation):
                log.sync()
        notes = read_notes(self._notes)
        if bool(notes) != self._paused:
            self._paused = bool(notes)
            if notes:
                self.event("data outage", **notes[0])
                self.say(f"paused: {notes[0]['what']} cannot be read ({notes[0]['reason']}); the run waits for it")
                self._trackers.alert("data outage", f"{notes[0]['what']}: {notes[0]['reason']}")
            else:
                self.event("data is back")
        return {"state": "paused", "outage": notes[0]} if notes else {}

    def _save_recipe(self, recipe: dict[str, Any], done_steps: int) -> Changes:
        """Write config.yaml, and recipes/step-N.yaml, which holds from step N on; what differs from the recipe of the
        last start, before and after, which is an event as well."""
        path, changes = self.folder / "config.yaml", Changes()
        if path.exists():
            before, after = flattened(OmegaConf.to_container(OmegaConf.load(path))), flattened(recipe)
            changes = differences(before, after)
            if changes:
                self.event("config changed", changes=changes)
        text = OmegaConf.to_yaml(OmegaConf.create(recipe))
        replace_text(path, text)
        folder = self.folder / "recipes"
        folder.mkdir(exist_ok=True)
        kept = [path for path in sorted(folder.glob("step-*.yaml")) if recipe_step(path) < done_steps]
        for later in set(folder.glob("step-*.yaml")) - set(kept):
            later.unlink()
        if not kept or kept[-1].read_text(encoding="utf-8") != text:
            replace_text(folder / f"step-{done_steps:08d}.yaml", text)
        return changes

    def _so_far(self, line: Values) -> Values:
        """What intervals.jsonl says of the whole run after the step of a line."""
        finished, seconds = self._checkpoint or (None, None)
        return {
            "eta_s": (self._total_steps - line["step"]) * self._global_batch / line["images_per_s"],
            "epoch": line["epoch"],
            "bad_samples": dict(self._bad.most_common()),
            "checkpoint_age_s": None if finished is None else time.time() - finished,
            "checkpoint_s": seconds,
            "updates": line["updates"],
            "skipped": self._skipped,
            "rollbacks": self._rollbacks,
            "restarts": self._restarts,
        }

    def _track_interval(self, interval: Values, deciles: list[float | None]) -> None:
        numbers = {f"{group}/{key}": interval[key] for group, keys in GROUPS.items() for key in keys}
        numbers |= {f"loss/timesteps_{i}0%": loss for i, loss in enumerate(deciles)}
        numbers |= {f"buckets/{bucket}": samples for bucket, samples in interval["buckets"].items()}
        numbers["data/bad_samples"] = self._bad.total()
        there = {name: float(number) for name, number in numbers.items() if number is not None}
        self._trackers.log(interval["step"], there)

    def _show(self, line: Values, interval: Values) -> None:
        shown = {key: line[key] for key in ("step", "loss", "epoch")} | {key: interval[key] for key in IN_STATUS}
        self._status.update(bad_samples=self._bad.total(), excluded_draws=self._excluded, **shown)
        loss = float("nan") if line["loss"] is None else line["loss"]
        self._progress.update(line["step"], loss, line["images_per_s"], interval["eta_s"])

    def _judge(self, lines: list[Values]) -> None:
        self._drawn += len(lines) * self._global_batch
        if self._bad.total() > max(1, self._max_bad_share * self._drawn):
            reasons = "; ".join(f"{count}× {reason}" for reason, count in self._bad.most_common(3))
            raise UserError(
                f"{self._bad.total()} of {self._drawn} samples could not be used ({reasons}): they are listed in "
                f"{self.folder / 'events.jsonl'}; mend the data or raise data.max_bad_share"
            )


def recipe_step(path: Path) -> int:
    """The number of steps that were done when a kept recipe began to hold."""
    return int(path.stem.removeprefix("step-"))
