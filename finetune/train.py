"""The run: open its parts, then the loop. Start reading here."""

import math
import time

import torch

from finetune.checkpoint.export import export
from finetune.checkpoint.store import Marks
from finetune.config import Config
from finetune.data.preparer import BadSample
from finetune.diffusion.objective import Losses, decile_means
from finetune.distributed import Distributed
from finetune.errors import Preempted, Stopped
from finetune.feed import Batches
from finetune.health.judge import Verdict
from finetune.health.slow import slow
from finetune.lifecycle.signals import StopSignals
from finetune.looks import look
from finetune.monitor.flops import peak_flops, utilisation
from finetune.monitor.intervals import Interval, combined
from finetune.monitor.metrics import Values
from finetune.opening import Opening, opened, tell_filling
from finetune.recovery import Recovery
from finetune.saving import Saving
from finetune.steering import Orders, Steering
from finetune.stopwatch import Stopwatch, take_memory_peak
from finetune.warmup import warm_up

AGAIN = "start the same command again to go on"


def train(config: Config) -> None:
    """Train a recipe from where its run's last checkpoint left off, and export what comes out.

    Raises:
        UserError: something in the recipe, the data, the model or the run's folder has to be mended first.
        Preempted: the run was told to stop, and has saved its state.
        Stopped: somebody has asked it to stop for now, and it has saved its state.
    """
    distributed = Distributed(config.strategy)
    try:
        with StopSignals() as signals, opened(config, distributed) as opening:
            run = Run(opening, signals)
            run.fit()
            run.finish()
    finally:
        distributed.close()


class Run:
    """The loop of a run, as one rank goes through it."""

    def __init__(self, opening: Opening, signals: StopSignals) -> None:
        self.opening = opening
        self.parts, self.watch, self.pulse = opening.parts, opening.watch, opening.pulse
        self.config, self.distributed, self.feed = opening.parts.config, opening.parts.distributed, opening.parts.feed
        self.signals = signals
        self.saving = Saving(opening)
        self.recovery = Recovery(opening, self.saving)
        self.steering = Steering(opening)
        self.bad: list[BadSample] = []
        self.peak_flops = peak_flops(self.distributed.device, self.config.strategy.precision)
        self.interval = Interval()
        """What this rank has done since the last flush."""
        self.stopping = self.save_failed = self.asked = False
        """What some rank said with the last step."""

    def fit(self) -> None:
        """Train to the run's end, stretch by stretch: at the borders between them the data or the phase may change."""
        step = self.parts.done
        self.warm_up(step)
        if not self.parts.looked:
            with self.interval.spending("sampling"):
                self.look(step)
        while step < self.parts.total_steps:
            stretch = self.stretch(step)
            step = self.train_through(stretch)
            if step == stretch.stop and step < self.parts.total_steps:
                self.cross(step)

    def stretch(self, start: int) -> range:
        """The steps from `start` to the next border of the data or of a phase."""
        phase_end = self.parts.phases.span(self.parts.phases.number(start)).stop
        return range(start, min(self.feed.border(start) or phase_end, phase_end))

    def train_through(self, steps: range) -> int:
        """Train the steps of a stretch, up to its end or until the data has to be taken up anew; the step to go on
        with."""
        with self.parts.batches(steps) as batches:
            for step in steps:
                batches.reached(step)
                verdict = self.train_step(step, batches)
                if verdict.rolls_back:
                    self.flush(step + 1)
                    to = self.recovery.roll_back(step, verdict, steps.stop)
                    self.attend(to, save=True)  # or a kill would have all of it come again
                    return to
                quarantined = self.recovery.quarantine(step, verdict)
                self.attend(step + 1)
                if quarantined:
                    return step + 1
        return steps.stop

    def train_step(self, step: int, batches: Batches) -> Verdict:
        """Train a step counted from 0, unless it turns out to be bad."""
        began = time.perf_counter()
        self.opening.start.step = step
        losses, waited_s, forward = self.accumulate(step, batches)
        self.pulse.at(step, "update")
        norm = self.distributed.gradient_norm().view(1)
        flags = (self.signals.requested, self.saving.store.failed, self.steering.asked)
        shared = self.distributed.share(losses.weighted, flags, losses.by_decile)
        # The step's one wait for the device: whether the update may be made has to be known before it is.
        mean_loss, stops, failures, requests, *deciles, total_norm = torch.cat((shared, norm)).tolist()
        self.stopping, self.save_failed, self.asked = stops > 0, failures > 0, requests > 0

        verdict = self.recovery.judge(step, mean_loss, total_norm)
        rates = self.parts.engine.rates(self.parts.phases.at(step), step, self.parts.total_steps)
        if verdict.reason is None:
            self.distributed.step(list(rates.values()))
            self.saving.updates += math.isfinite(total_norm)  # fp16 leaves out what overflows
        else:
            self.distributed.skip()
        step_s = time.perf_counter() - began
        self.interval.step(step_s, waited_s, waited_s + forward.seconds())
        if self.watch:
            values = self.metrics(step, mean_loss, total_norm, rates) | {"loss_by_decile": decile_means(deciles)}
            values |= {"skipped": int(verdict.reason is not None), "updates": self.saving.updates}
            values |= {"data_wait_s": waited_s, "step_s": step_s}
            self.watch.record(values, self.feed.plan.step(step))
        return verdict

    def accumulate(self, step: int, batches: Batches) -> tuple[Losses, float, Stopwatch]:
        """Add up one step's gradients on this rank. Returns what its micro-batches cost together, on the device, the
        seconds that were spent waiting for data, and what has timed the forward passes."""
        losses, waited_s, forward = list[Losses](), 0.0, Stopwatch(self.distributed.device)
        for i in range(self.distributed.accumulation):
            self.pulse.at(step, "data")
            asked = time.perf_counter()
            batch = next(batches)
            waited_s += time.perf_counter() - asked
            prepared = self.parts.step.prepare(batch)
            self.pulse.at(step, "forward")
            with forward:
                loss = self.parts.step.loss(prepared)
            self.pulse.at(step, "backward")
            self.distributed.backward(loss.weighted, last=i == self.distributed.accumulation - 1)
            losses.append(Losses(loss.weighted.detach(), loss.by_decile))
            self.bad += batch.bad
            self.interval.take(batch)
        weighted, by_decile = (torch.stack(each) for each in zip(*losses, strict=True))
        return Losses(weighted.mean(), by_decile.sum(0)), waited_s, forward

    def attend(self, done: int, *, save: bool = False) -> None:
        """Do what is due after `done` steps, and save in any case if told so."""
        orders = self.steering.take(done) if self.asked else Orders()
        phases, config = self.parts.phases, self.parts.live(done)
        border = done == phases.span(phases.number(done - 1)).stop
        due = done % config.checkpoint.every_steps == 0
        saving = save or border or self.stopping or due or orders.save or orders.stop is not None
        if saving or done % config.monitor.flush_every_steps == 0:
            self.flush(done)
        # Before saving: what is done again after a kill is looked at again. A stop leaves no time for it.
        with self.interval.spending("sampling"):
            validated = None if self.stopping else self.look(done, asked=orders.sample)
        with self.interval.spending("saving"):
            if saving:
                self.saving.save(done, Marks(border, validated), looked=not self.stopping)
            self.saving.attend()
            if self.save_failed:
                self.saving.written()
        if self.stopping or orders.stop is not None:
            self.leave(done, orders.stop)

    def leave(self, done: int, asked_by: str | None) -> None:
        """End the run as somebody has asked, or else as it was told to: what shall stay stopped is not to be started
        again because a signal comes at the same time."""
        self.saving.finish(in_haste=self.stopping)
        if asked_by is not None:
            raise Stopped(f"{asked_by} asked it to stop after {done:,} steps, which are saved: {AGAIN}")
        reasons = sorted({reason for reason in self.distributed.gather(self.signals.reason) if reason})
        raise Preempted(f"stopped by {', '.join(reasons)} after {done:,} steps, which are saved: {AGAIN}")

    def cross(self, step: int) -> None:
        """Go over a border: take in what has changed in the data, and go over to the phase of a step. What it can't
        train with as it is, is built anew from the checkpoint, as it would be if the run had been killed here."""
        self.flush(step)
        self.opening.renew(step)
        phase, number = self.parts.phases.at(step), self.parts.phases.number(step)
        if not self.parts.fits(phase):
            checkpoint = self.saving.at(step)
            self.parts.build(phase)
            self.distributed.load_state(*checkpoint.ranks)
            if self.watch:
                tell_filling(self.watch, self.parts)
        if self.watch and step == self.parts.phases.span(number).start:
            self.watch.phase(step, number, phase.facts, changed=True)
        self.warm_up(step)

    def warm_up(self, step: int) -> None:
        """Compile for what is trained from a step on; the time that takes is no interval's."""
        began = time.perf_counter()
        warm_up(self.parts, self.watch, self.pulse, step)
        self.interval.began += time.perf_counter() - began

    def metrics(self, step: int, loss: float, grad_norm: float, rates: dict[str, float]) -> Values:
        """The line of metrics.jsonl of a step counted from 0, but for its times."""
        done = step + 1
        return {
            "step": done,
            "samples_seen": done * self.config.train.global_batch,
            "epoch": self.feed.plan.epoch(done),
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": rates,
            "phase": self.parts.phases.number(step),
        }

    def flush(self, done: int) -> None:
        """Write what was recorded since the last flush, where there have been steps."""
        if not self.interval.step_s:
            return
        self.interval.end(take_memory_peak(self.distributed.device))
        gathered = self.distributed.gather((self.bad, self.interval))
        if self.watch:
            intervals = [interval for _, interval in gathered]
            figures = combined(intervals) | {"mfu": utilisation(intervals, self.parts.flops, self.peak_flops)}
            self.watch.flush([one for bad, _ in gathered for one in bad], figures)
            factor = self.config.health.slow_factor
            self.watch.slow_ranks(done, slow([interval.own_s for interval in intervals], factor))
        self.bad, self.interval = [], Interval()

    def look(self, done: int, *, asked: bool = False) -> float | None:
        """Validate and draw samples where that is due after `done` steps, and samples in any case if asked to; the
        validation's loss."""
        return look(self.parts, self.watch, self.pulse, done, asked=asked)

    def finish(self) -> None:
        """Export the model, draw the curves, and wait until everything lies where it belongs."""
        steps = max(self.parts.done, self.parts.total_steps)  # phases may have been made shorter
        self.pulse.at(steps, "exporting")
        with self.distributed.evaluation_weights():
            if self.watch:
                folder = self.watch.folder / "export"
                export(self.parts.pipeline, folder, model=self.config.model, steps=steps)
                self.watch.say(
                    f"curves   {self.watch.curves()}\nsamples  {self.watch.folder / 'samples'}\nmodel    {folder}"
                )
        self.saving.finish(in_haste=False)
