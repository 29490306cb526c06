"""The watchdog, with real processes that wait for one another: who is named, what is left, and who is left alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from finetune.health.pulse import Beat, Pulse, read_pulses
from finetune.health.stalls import Stall, declared, mark_told, untold
from finetune.health.watchdog import EXIT_STALLED, LONG_FACTOR, Watchdog, furthest_behind, is_waiting

STALL_S = 3.0
FAULTS: dict[str, dict[str, Any]] = {
    "asleep": {"rank": 1, "step": 5, "activity": "forward", "kind": "sleep"},
    "first asleep": {"rank": 0, "step": 5, "activity": "backward", "kind": "sleep"},
    "stopped": {"rank": 1, "step": 5, "activity": "backward", "kind": "SIGSTOP"},
    "first stopped": {"rank": 0, "step": 5, "activity": "data", "kind": "SIGSTOP"},
    "waiting for data": {"rank": 1, "step": 5, "activity": "data", "kind": "sleep"},
    "well": {},
}


@dataclass
class Toy:
    """A run of two ranks."""

    run: Path

    def exits(self, *ranks: int) -> list[int]:
        """The exit codes of some ranks."""
        return [int(waited(self.run / f"{rank}.exit").read_text()) for rank in ranks]

    def ended(self, rank: int) -> bool:
        """Whether a rank has ended."""
        return (self.run / f"{rank}.exit").exists()

    def facts(self) -> dict[str, Any]:
        """Of its one stall."""
        (path,) = (self.run / "stalls").glob("*/stall.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def stacks(self) -> dict[str, str]:
        """By rank."""
        return {path.stem: path.read_text() for path in (self.run / "stalls").glob("*/rank-*.txt")}

    def said(self) -> str:
        """What the ranks said."""
        return "".join((self.run / f"{rank}.log").read_text() for rank in range(2))


def waited(path: Path) -> Path:
    """A file, once it is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.1)
    return path


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Toy]]:
    """All of them at once: they mostly wait."""
    folder = tmp_path_factory.mktemp("toys")
    runs = {name: folder / name.replace(" ", "-") for name in FAULTS}
    for run in runs.values():
        run.mkdir()
    note = runs["waiting for data"] / "waiting"
    note.mkdir()
    (note / "note.json").write_text(json.dumps({"what": "shard", "reason": "away", "since": time.time()}))
    given = json.dumps({str(runs[name]): fault for name, fault in FAULTS.items()})
    command = [sys.executable, str(Path(__file__).with_name("toys.py")), str(STALL_S), given]
    process = subprocess.Popen(command, start_new_session=True)
    yield {name: Toy(run) for name, run in runs.items()}
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_rank_that_sleeps_is_named_and_shows_where(toys: dict[str, Toy]) -> None:
    toy = toys["asleep"]
    assert toy.exits(0, 1) == [EXIT_STALLED, EXIT_STALLED]
    facts = toy.facts()
    assert (facts["ranks"], facts["step"], facts["activity"]) == ([1], 6, "forward")
    assert facts["pid"] == read_pulses(toy.run / "pulse")[1].pid
    assert STALL_S <= facts["seconds"] < 4 * STALL_S
    assert [(beat["rank"], beat["activity"], beat["waits"]) for beat in facts["beats"]] == [
        (1, "forward", False),
        (0, "backward", True),
    ]
    stacks = toy.stacks()
    assert "in fall_asleep" in stacks["rank-00001"]
    assert "in all_reduce" in stacks["rank-00000"]
    told = json.loads((toy.run / "events.jsonl").read_text())
    assert told == {name: fact for name, fact in facts.items() if name != "beats"}
    assert list(untold(toy.run / "stalls")) == []
    sentence = f"rank 1 (process {facts['pid']} on "
    assert toy.said().count(sentence) == 1
    assert "while ranks 0 wait for it" in toy.said()


def test_where_all_are_at_the_same_place_the_one_is_named_that_waits_for_nobody(toys: dict[str, Toy]) -> None:
    toy = toys["first asleep"]
    assert toy.exits(0, 1) == [EXIT_STALLED, EXIT_STALLED]
    facts = toy.facts()
    assert (facts["ranks"], facts["step"], facts["activity"]) == ([0], 6, "backward")
    assert "in fall_asleep" in toy.stacks()["rank-00000"]


def test_a_process_that_is_stopped_is_named_by_the_others(toys: dict[str, Toy]) -> None:
    toy = toys["stopped"]
    assert toy.exits(0) == [EXIT_STALLED]
    assert not toy.ended(1)
    facts = toy.facts()
    assert (facts["ranks"], facts["step"], facts["activity"]) == ([1], 6, "backward")
    assert "does not answer" in facts["reason"]
    assert toy.stacks().keys() == {"rank-00000"}
    assert (toy.run / "events.jsonl").exists()


def test_what_the_first_rank_cannot_tell_is_left_for_the_next_start(toys: dict[str, Toy]) -> None:
    toy = toys["first stopped"]
    assert toy.exits(1) == [EXIT_STALLED]
    assert not toy.ended(0)
    assert not (toy.run / "events.jsonl").exists()
    (facts,) = untold(toy.run / "stalls")
    assert (facts["ranks"], facts["step"], facts["activity"]) == ([0], 6, "data")
    assert list(untold(toy.run / "stalls")) == []


def test_who_waits_for_data_does_not_stand_still(toys: dict[str, Toy]) -> None:
    toy = toys["waiting for data"]
    while [beat.step for beat in read_pulses(toy.run / "pulse")] != [5, 5]:
        time.sleep(0.1)
    time.sleep(2 * STALL_S)
    assert [toy.ended(rank) for rank in range(2)] == [False, False]
    (toy.run / "waiting" / "note.json").unlink()
    assert toy.exits(0, 1) == [EXIT_STALLED, EXIT_STALLED]
    assert toy.facts()["ranks"] == [1]


def test_a_run_that_is_well_is_left_alone(toys: dict[str, Toy]) -> None:
    toy = toys["well"]
    assert toy.exits(0, 1) == [0, 0]
    assert not (toy.run / "stalls").exists()


def beat(rank: int, step: int = 3, turn: int = 2, waits: bool = False, pid: int = 7, activity: str = "data") -> Beat:
    return Beat(rank, "node", pid, step, turn, activity, 0.0, 1, waits)


@pytest.mark.parametrize(
    ("beats", "silent", "expected"),
    [
        ([beat(0), beat(1, step=2, turn=9), beat(2)], [], [1]),
        ([beat(0), beat(1, turn=1, waits=True), beat(2)], [0], [1]),
        ([beat(0), beat(1), beat(2)], [2], [2]),
        ([beat(0, waits=True), beat(1), beat(2, waits=True)], [], [1]),
        ([beat(0, waits=True), beat(1, waits=True)], [], [0, 1]),
        ([beat(0), beat(1, step=-1, pid=0)], [], [1]),
        ([beat(0)], [], [0]),
    ],
)
def test_whom_the_others_wait_for(beats: list[Beat], silent: list[int], expected: list[int]) -> None:
    assert [found.rank for found in furthest_behind(beats, silent)] == expected


def test_the_sentence() -> None:
    others = (beat(0), beat(2))
    assert Stall((beat(1),), others, 61.7, frozenset()).sentence == (
        "rank 1 (process 7 on node) has been in data of step 4 for 62 s, while ranks 0, 2 wait for it"
    )
    assert "for 62 s and does not answer, while" in Stall((beat(1),), others, 61.7, frozenset({1})).sentence
    assert Stall((beat(1),), (), 60.0, frozenset()).sentence.endswith("of step 4 for 60 s")
    assert Stall((beat(0), beat(1)), (beat(2),), 60.0, frozenset()).sentence == (
        "ranks 0, 1 have all been in data of step 4 for 60 s, none of them behind the others and ranks 2 wait for them"
    )
    assert Stall((beat(1, step=-1, pid=0),), others, 60.0, frozenset()).sentence == (
        "rank 1 has not begun for 60 s while ranks 0, 2 wait"
    )


def test_a_stall_is_declared_once_and_to_its_own_start_alone(tmp_path: Path) -> None:
    stalls = tmp_path / "stalls"
    stall = Stall((beat(1, pid=11),), (beat(0, pid=10),), 60.0, frozenset())
    assert stall.declare(stalls)
    assert not stall.declare(stalls)
    assert declared(stalls, [], "node", 10) == (stalls / stall.name, stall.facts)
    assert declared(stalls, [stall.name], "node", 10) is None
    assert declared(stalls, [], "node", 12) is None
    assert declared(stalls, [], "elsewhere", 10) is None
    mark_told(stalls / stall.name)
    assert list(untold(stalls)) == []


def watched(tmp_path: Path, pulse: Pulse, world: int = 1) -> Watchdog:
    return Watchdog(pulse, tmp_path, world=world, stall_s=10.0, notes=tmp_path / "waiting")


@pytest.mark.parametrize(("activity", "expected"), [("forward", 10.0), ("saving", 10.0 * LONG_FACTOR)])
def test_some_things_may_take_long(tmp_path: Path, activity: Any, expected: float, monkeypatch: Any) -> None:
    pulse = Pulse(tmp_path / "pulse", 0)
    pulse.at(3, activity)
    watchdog, found = watched(tmp_path, pulse), []
    monkeypatch.setattr(watchdog, "_declare", found.append)
    looks = 0
    while not found:
        watchdog._look(0.5)
        looks += 1
    assert looks * 0.5 == pytest.approx(expected, abs=1.0)


def test_another_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: Any) -> None:
    """A rank that is behind but moves is slow, and has not stopped."""
    pulse, other = Pulse(tmp_path / "pulse", 0), Pulse(tmp_path / "pulse", 1)
    pulse.at(9, "data")
    watchdog, found = watched(tmp_path, pulse, world=2), []
    monkeypatch.setattr(watchdog, "_declare", found.append)
    for i in range(200):
        if i % 8 == 0:
            other.at(2, "forward")
        watchdog._look(0.5)
    assert found == []
    for _ in range(25):
        watchdog._look(0.5)
    assert [beat.rank for beat in found[0].culprits] == [1]


def test_a_process_that_was_stopped_itself_does_not_blame_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it was stopped, it counts as two looks."""
    watchdog, found = watched(tmp_path, Pulse(tmp_path / "pulse", 0)), []
    watchdog._look_s = 0.5
    monkeypatch.setattr(watchdog, "_declare", found.append)
    clock, looks = count(step=1000.0), iter([False] * 5)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(watchdog._left, "wait", lambda look_s: next(looks, True))
    watchdog._watch()
    assert found == []
    assert watchdog._still_s == 5 * 2 * 0.5


def test_nobody_is_watched_with_0(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watchdog(Pulse(tmp_path, 0), tmp_path, world=1, stall_s=0.0, notes=tmp_path):
        assert threading.active_count() == before


def test_who_computes_does_not_wait() -> None:
    assert not is_waiting(threading.get_ident())
    assert not is_waiting(-1)
