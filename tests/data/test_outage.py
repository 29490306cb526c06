"""Faults of I/O pass, are told while they last, and never end a wait by themselves."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data import outage
from finetune.data.outage import Patience, read_notes


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.01)


def failing(times: int, error: Exception, seen: Callable[[], None] = lambda: None) -> Callable[[], str]:
    """Fails so many times, then gives "data"."""
    left = [times]

    def function() -> str:
        seen()
        if left[0]:
            left[0] -= 1
            raise error
        return "data"

    return function


def test_a_fault_passes() -> None:
    assert Patience().until_done("x", failing(5, ConnectionResetError("reset"))) == "data"


def test_what_is_no_fault_of_io_is_raised_at_once() -> None:
    calls: list[int] = []
    with pytest.raises(KeyError):
        Patience().until_done("x", failing(5, KeyError("bug"), lambda: calls.append(1)))
    assert len(calls) == 1


def test_tries_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.5)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 30.0)
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, timeout=None: waits.append(timeout or 0.0))
    Patience().until_done("x", failing(200, OSError("down")))
    assert all(wait <= min(0.5 * 2**i, 30.0) for i, wait in enumerate(waits))
    assert max(waits) > 15.0
    assert len(set(waits)) == len(waits)  # jitter
    assert sum(waits) / len(waits) > 10.0  # some 4 tries a minute in a long outage


def test_a_note_is_there_while_a_fault_lasts_and_only_then(tmp_path: Path) -> None:
    seen: list[list[dict[str, object]]] = []
    patience = Patience(tmp_path / "notes", alert_after_s=0.05)
    begun = time.time()

    def function() -> int:
        seen.append(read_notes(tmp_path / "notes"))
        if time.time() - begun < 0.2:
            raise OSError("the server is away")
        return 7

    assert patience.until_done("http://server/a.tar", function) == 7
    assert seen[0] == []
    note = seen[-1][0]
    assert note["what"] == "http://server/a.tar"
    assert note["reason"] == "OSError: the server is away"
    assert begun - 0.1 <= float(str(note["since"])) <= begun + 0.2
    assert list((tmp_path / "notes").iterdir()) == []


def test_a_short_fault_leaves_no_note(tmp_path: Path) -> None:
    Patience(tmp_path / "notes", alert_after_s=60.0).until_done("x", failing(5, OSError("blip")))
    assert not (tmp_path / "notes").exists()


def test_a_note_that_cannot_be_written_ends_no_wait(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file and no folder")
    assert Patience(tmp_path / "notes", alert_after_s=0.0).until_done("x", failing(3, OSError("down"))) == "data"


def test_notes_of_the_dead_are_left_out_and_the_oldest_outage_comes_first(tmp_path: Path) -> None:
    for name, since in (("b", 20.0), ("a", 30.0), ("dead", 10.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"what": name, "reason": "r", "since": since}))
    long_ago = time.time() - outage.STALE_S - 1
    os.utime(tmp_path / "dead.json", (long_ago, long_ago))
    assert [note["what"] for note in read_notes(tmp_path)] == ["b", "a"]
    assert read_notes(tmp_path / "none") == []


def test_giving_up_ends_the_waits_of_now_and_not_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 1000.0)
    patience, tried, raised = Patience(), threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(OSError, match="down"):
            patience.until_done("x", failing(1000, OSError("down"), tried.set))
        raised.set()

    threading.Thread(target=wait, daemon=True).start()
    assert tried.wait(10.0)
    patience.give_up()
    assert raised.wait(10.0)
    assert patience.until_done("x", failing(1, OSError("down"))) == "data"


def test_it_goes_to_other_processes() -> None:
    again = pickle.loads(pickle.dumps(Patience(Path("notes"))))  # noqa: S301 (its own bytes)
    assert again.until_done("x", failing(2, OSError("down"))) == "data"


def test_for_a_while() -> None:
    patience = Patience()
    assert patience.for_a_while(failing(outage.ATTEMPTS - 1, OSError("down"))) == "data"
    with pytest.raises(OSError, match="down"):
        patience.for_a_while(failing(10**9, OSError("down")))
    for error in (FileNotFoundError("gone"), PermissionError("denied")):
        with pytest.raises(type(error)):
            patience.for_a_while(failing(1, error))
