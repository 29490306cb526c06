"""What has happened so far."""

import pytest

from finetune.data.journal import EXCLUDED, QUARANTINED, Edition, Journal, Jump, Skip
from finetune.data.preparer import BadSample
from finetune.errors import UserError
from finetune.monitor.tally import Tally

JOURNAL = Journal((Edition(0, {}),), skips=(Skip(3, "nan"), Skip(4, "nan")), jumps=(Jump(2, 9, 3),))


def bad(reason: str) -> BadSample:
    return BadSample(1, 0, 5, "key", "shard-00000.tar", reason, 6)


def test_it_goes_on_from_what_the_journal_knows() -> None:
    figures = Tally(JOURNAL, restarts=4, max_bad_share=0.1).figures(updates=7)
    assert (figures["skipped"], figures["rollbacks"], figures["restarts"], figures["updates"]) == (2, 1, 4, 7)
    assert (figures["checkpoint_age_s"], figures["checkpoint_s"]) == (None, None)


def test_what_is_replaced_on_purpose_is_not_bad() -> None:
    tally = Tally(JOURNAL, 0, max_bad_share=0.0)
    taken = [tally.take(bad(reason)) for reason in (EXCLUDED, "broken", QUARANTINED, "broken", "too small")]
    assert taken == [False, True, False, True, True]
    assert tally.excluded == 2
    assert tally.figures(0)["bad_samples"] == {"broken": 2, "too small": 1}


def test_too_many_bad_samples_end_the_run_with_their_reasons() -> None:
    tally = Tally(JOURNAL, 0, max_bad_share=0.1)
    tally.take(bad("broken"))
    tally.check_bad(5)  # a single one never does
    tally.take(bad("empty"))
    tally.check_bad(15)
    tally.take(bad("broken"))
    with pytest.raises(UserError, match=r"3 of 25 samples could not be used .2× broken; 1× empty.*max_bad_share"):
        tally.check_bad(5)


def test_a_checkpoint_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("finetune.monitor.tally.time.time", lambda: now)
    tally = Tally(JOURNAL, 0, max_bad_share=0.1)
    assert tally.saved(2.5) == 1000.0
    now = 1060.0
    figures = tally.figures(0)
    assert (figures["checkpoint_age_s"], figures["checkpoint_s"]) == (60.0, 2.5)
