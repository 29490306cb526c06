"""When a run counts as silent, by the looker's own clock."""

import socket
from pathlib import Path
from typing import Any

import pytest

from finetune.health.pulse import FOLDER as PULSES
from finetune.health.pulse import Pulse
from finetune.monitor.alerts.silence import SHARED_LATE_S, Silence, whereabouts
from finetune.monitor.status import ENDED, MISSED_HEARTBEATS

HOST = socket.gethostname()
LIMIT = MISSED_HEARTBEATS  # in seconds, at a heartbeat each


def status(beat: float, *, host: str = HOST, pid: int = 42, state: str = "running") -> dict[str, Any]:
    return {"host": host, "pid": pid, "heartbeat": beat, "heartbeat_s": 1.0, "state": state, "step": 7}


def test_it_is_told_once_and_so_is_its_end() -> None:
    silence = Silence(None)
    assert [silence.look(status(0.0), 1.0) for _ in range(LIMIT + 1)] == [None] * (LIMIT + 1)
    assert silence.look(status(0.0), 1.0) == "no heartbeat"
    assert [silence.look(status(0.0), 1.0) for _ in range(100)] == [None] * 100
    assert silence.look(status(1.0), 1.0) == "heartbeat is back"
    assert silence.look(status(2.0), 1.0) is None


@pytest.mark.parametrize("beat", [-1e6, 0.0, 1e12])
def test_clocks_of_other_machines_do_not_matter(beat: float) -> None:
    silence = Silence(None)
    assert [silence.look(status(beat + i), 1.0) for i in range(100)] == [None] * 100


def test_what_another_machine_writes_is_seen_late() -> None:
    silence, looks = Silence(None), 0
    while silence.look(status(0.0, host="elsewhere"), 1.0) is None:
        looks += 1
    assert looks == LIMIT + SHARED_LATE_S + 1


@pytest.mark.parametrize("state", ENDED)
def test_a_run_that_has_ended_is_silent_by_right(state: str) -> None:
    silence = Silence(None)
    assert [silence.look(status(0.0, state=state), 1.0) for _ in range(100)] == [None] * 100


def test_a_watcher_that_goes_on_tells_it_no_second_time() -> None:
    first = Silence(None)
    while first.look(status(0.0), 1.0) is None:
        pass
    second = Silence(first.told)
    assert [second.look(status(0.0), 1.0) for _ in range(100)] == [None] * 100
    assert second.look(status(1.0), 1.0) == "heartbeat is back"


def test_another_start_is_not_the_one_that_was_silent() -> None:
    silence = Silence([HOST, 42, 0.0])
    assert silence.look(status(1.0, pid=43), 1.0) is None
    assert silence.told is None


def test_where_it_was_is_told_from_the_pulse(tmp_path: Path) -> None:
    assert whereabouts(tmp_path, status(0.0)) == {"step": 7, "activity": None, "host": HOST, "pid": 42}
    pulse = Pulse(tmp_path / PULSES, 0)
    pulse.at(7, "backward")
    pulse.close()
    assert whereabouts(tmp_path, status(0.0)) == {"step": 8, "activity": "backward", "host": HOST, "pid": 42}
