"""What follows from bad steps: they are left out, the run goes back, samples are put into quarantine."""

from finetune.data.journal import Journal, Jump, Quarantine, Skip
from finetune.errors import UserError
from finetune.health.judge import Verdict
from finetune.health.quarantine import drawn, suspects
from finetune.opening import Opening
from finetune.saving import Saving


class Recovery:
    """Judges steps, and acts on it; every rank alike."""

    def __init__(self, opening: Opening, saving: Saving) -> None:
        self._opening = opening
        self._parts = opening.parts
        self._feed = opening.parts.feed
        self._saving = saving

    def judge(self, step: int, loss: float, norm: float) -> Verdict:
        """Whether a step counted from 0 may change the weights; one that may not is written down.

        Args:
            loss: mean over all ranks.
            norm: global norm of the gradients before clipping.
        """
        verdict = self._saving.health.judge(step, loss, norm, phase=self._parts.phases.number(step))
        if verdict.reason is not None:
            self._remember(self._feed.journal.with_skip(Skip(step, verdict.reason)))
            if watch := self._opening.watch:
                keys = [self._feed.sources.key(sample) for sample in drawn(self._feed.plan, step)]
                watch.skipped(step + 1, verdict.reason, keys)
        return verdict

    def quarantine(self, step: int, verdict: Verdict) -> bool:
        """Once bad steps are over, see whether some samples turn up in them again and again; whether there are such,
        which are replaced from the next step on."""
        if not verdict.ended:
            return False
        journal, after = self._feed.journal, self._parts.config.health.quarantine_after
        samples = suspects(journal, self._feed.plan, after)
        if not samples:
            return False
        self._remember(journal.with_quarantine(Quarantine(step + 1, samples)))
        if watch := self._opening.watch:
            keys = [self._feed.sources.key(sample) for sample in samples]
            watch.event("quarantined", step=step + 1, keys=keys)
            watch.say(f"quarantine from step {step + 2:,} on: {', '.join(keys)}")
        return True

    def roll_back(self, step: int, verdict: Verdict, border: int) -> int:
        """Restore the weights of the checkpoint before the bad steps that end with `step`, and pass over the window of
        the data that they lie in; the step to go on with, at most the next border. It has to be saved at once.

        Raises:
            UserError: the run has gone back too often, or has nowhere to go back to.
        """
        health, journal, first_bad = self._parts.config.health, self._feed.journal, step + 1 - verdict.streak
        if len(journal.jumps) >= health.max_rollbacks:
            raise UserError(
                f"{verdict.streak} bad steps in a row up to step {step + 1:,} ({verdict.reason}), and the run has been "
                f"rolled back {len(journal.jumps)} times already: look at the samples of these steps in events.jsonl "
                "and at the learning rate, and raise health.max_rollbacks to go on"
            )
        self._opening.pulse.at(step, "saving")
        checkpoint = self._saving.store.rollback(first_bad, self._opening.report)
        if checkpoint is None:
            raise UserError(
                f"{verdict.streak} bad steps in a row up to step {step + 1:,} ({verdict.reason}), and no checkpoint of "
                "before to go back to: look at the samples of these steps in events.jsonl and at the learning rate, "
                "and save more often (checkpoint.every_steps)"
            )
        to = min(self._feed.plan.after_window(step), border)
        self._remember(journal.with_jump(Jump(checkpoint.step, to, first_bad)))
        self._parts.distributed.load_state(*checkpoint.ranks)
        before_change = self._parts.changed and checkpoint.step <= self._parts.done
        self._saving.recall(checkpoint, compare=not before_change)
        if watch := self._opening.watch:
            watch.rolled_back(checkpoint.step, to, f"{verdict.streak} bad steps in a row: {verdict.reason}")
        return to

    def _remember(self, journal: Journal) -> None:
        self._feed.remember(journal)
        if watch := self._opening.watch:
            watch.keep_journal(journal)
