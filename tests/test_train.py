"""How the loop ends."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune.errors import Preempted, Stopped
from finetune.train import Run
from tests.ranks import OneRank


def leave(asked_by: str | None, reason: str | None) -> None:
    run = SimpleNamespace(
        saving=SimpleNamespace(finish=lambda in_haste: None),
        stopping=reason is not None,
        signals=SimpleNamespace(reason=reason),
        distributed=OneRank(),
    )
    Run.leave(cast(Any, run), 7, asked_by)


def test_a_run_that_shall_stay_stopped_does_so_whatever_signal_comes() -> None:
    with pytest.raises(Stopped, match="me@host asked it to stop after 7 steps"):
        leave("me@host", "SIGTERM")
    with pytest.raises(Stopped):
        leave("me@host", None)
    with pytest.raises(Preempted, match="stopped by SIGTERM after 7 steps"):
        leave(None, "SIGTERM")
