"""What has happened in a run so far, as intervals.jsonl and status.json count it."""

import time
from collections import Counter
from typing import Any

from finetune.data.journal import EXCLUDED, QUARANTINED, Journal
from finetune.data.preparer import BadSample
from finetune.errors import UserError


class Tally:
    """Counts. Those of samples begin anew with every start."""

    def __init__(self, journal: Journal, restarts: int, max_bad_share: float) -> None:
        """Take up what the history of the run's data says.

        Args:
            restarts: how often the run has begun before.
            max_bad_share: of the samples drawn, how many may be bad.
        """
        self.skipped, self.rollbacks = len(journal.skips), len(journal.jumps)
        self.excluded = 0
        """Draws of samples that are excluded or in quarantine."""
        self.bad: Counter[str] = Counter()
        """Bad samples by reason."""
        self._restarts = restarts
        self._max_bad_share = max_bad_share
        self._drawn = 0
        self._saved: tuple[float, float] | None = None

    def take(self, one: BadSample) -> bool:
        """Count a draw whose sample was replaced; whether that is because it cannot be used."""
        if one.reason in (EXCLUDED, QUARANTINED):
            self.excluded += 1
            return False
        self.bad[one.reason] += 1
        return True

    def saved(self, seconds: float) -> float:
        """Note a checkpoint that took so long; the time, in seconds since 1970."""
        self._saved = time.time(), seconds
        return self._saved[0]

    def figures(self, updates: int) -> dict[str, Any]:
        """Of the whole run so far: keys of intervals.jsonl."""
        finished, seconds = self._saved or (None, None)
        return {
            "bad_samples": dict(self.bad.most_common()),
            "checkpoint_age_s": None if finished is None else time.time() - finished,
            "checkpoint_s": seconds,
            "updates": updates,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "restarts": self._restarts,
        }

    def check_bad(self, drawn: int) -> None:
        """Count samples drawn. Raises UserError where more of all of them are bad than may be."""
        self._drawn += drawn
        if self.bad.total() > max(1, self._max_bad_share * self._drawn):
            reasons = "; ".join(f"{count}× {reason}" for reason, count in self.bad.most_common(3))
            raise UserError(
                f"{self.bad.total()} of {self._drawn} samples could not be used ({reasons}): they are listed in the "
                "run's events.jsonl; mend the data or raise data.max_bad_share"
            )
