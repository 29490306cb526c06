"""Trackers that raise, hang or are slow: their callers never notice, and the others go on."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from finetune.monitor.events import EventLog
from finetune.monitor.files import read_lines
from finetune.monitor.trackers import Trackers, guarded, trackers

PICTURE = Image.new("RGB", (1, 1))
CALLS: dict[str, Callable[[Trackers], None]] = {
    "log": lambda to: to.log(1, {"loss": 1.0}),
    "image": lambda to: to.image(1, "samples", PICTURE),
    "alert": lambda to: to.alert("spike", "a loss of 9", "warn"),
    "rolled_back": lambda to: to.rolled_back(1),
}
METHODS = ("open", *CALLS, "close")
ERRORS = (OSError("no space left on http://user:secret@host"), RuntimeError(), SystemExit(3), KeyboardInterrupt())


class Fake:
    """Notes what it is asked, and does something at one of the methods."""

    def __init__(self, at: str = "", do: Callable[[], object] = lambda: None) -> None:
        self.seen: list[tuple[object, ...]] = []
        self._at = at
        self._do = do

    def open(self) -> None:
        self._note("open")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._note("log", step, values)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        self._note("image", step, name, image)

    def alert(self, title: str, text: str, level: str) -> None:
        self._note("alert", title, text, level)

    def rolled_back(self, step: int) -> None:
        self._note("rolled_back", step)

    def close(self, ended: str) -> None:
        self._note("close", ended)

    def abandon(self) -> None:
        self.seen.append(("abandon",))

    def _note(self, method: str, *arguments: object) -> None:
        self.seen.append((method, *arguments))
        if method == self._at:
            self._do()


EVERYTHING = [
    ("open",),
    ("log", 1, {"loss": 1.0}),
    ("image", 1, "samples", PICTURE),
    ("alert", "spike", "a loss of 9", "warn"),
    ("rolled_back", 1),
    ("close", "finished"),
]


def throw(error: BaseException) -> None:
    raise error


@contextmanager
def stuck() -> Iterator[Callable[[], object]]:
    """What does not return within the context."""
    released = threading.Event()
    try:
        yield released.wait
    finally:
        released.set()


def opened(folder: Path, **fakes: Fake) -> Trackers:
    return Trackers(dict(fakes), EventLog(folder / "events.jsonl"))


def told(folder: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in line.items() if key != "time"} for line in read_lines(folder / "events.jsonl")
    ]


def call_everything(to: Trackers) -> None:
    for call in CALLS.values():
        call(to)
    to.close("finished")


def test_all_is_handed_on_in_order(tmp_path: Path) -> None:
    one, other = Fake(), Fake()
    call_everything(opened(tmp_path, one=one, other=other))
    assert one.seen == other.seen == EVERYTHING
    assert told(tmp_path) == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_one_that_raises_is_switched_off_and_the_others_go_on(
    tmp_path: Path, method: str, error: BaseException
) -> None:
    broken, good = Fake(method, lambda: throw(error)), Fake()
    to = opened(tmp_path, broken=broken, good=good)
    call_everything(to)
    (event,) = told(tmp_path)
    assert (event["kind"], event["tracker"]) == ("tracker failed", "broken")
    assert event["reason"] == (
        "no space left on http://***@host" if isinstance(error, OSError) else str(error) or type(error).__name__
    )
    failed_at = METHODS.index(method)
    assert broken.seen == [*EVERYTHING[: failed_at + 1], ("abandon",)]
    assert good.seen == EVERYTHING


@pytest.mark.parametrize("method", METHODS)
def test_one_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    with stuck() as hang:
        broken, good = Fake(method, hang), Fake()
        call_everything(opened(tmp_path, broken=broken, good=good))
        assert good.seen == EVERYTHING
        assert broken.seen[-1] == ("abandon",)
    (event,) = told(tmp_path)
    waiting = len(METHODS) - METHODS.index(method)  # what was not handed on, and the end
    lost = waiting if method != "close" else 1
    assert event == {"kind": "tracker incomplete", "tracker": "broken", "lost": lost, "answers": False}


def test_what_a_slow_one_cannot_take_is_dropped_counted_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "WAITING", 8)
    slow = Fake()
    released = threading.Event()
    slow.open = lambda: released.wait()  # type: ignore[method-assign,assignment,return-value]
    to = opened(tmp_path, slow=slow)
    for step in range(20):
        to.log(step, {})
    assert told(tmp_path) == [{"kind": "tracker behind", "tracker": "slow", "waiting": 8}]
    released.set()
    while len(slow.seen) < 8:
        time.sleep(0.001)
    to.log(20, {})
    to.close("finished")
    assert slow.seen == [*(("log", step, {}) for step in (*range(8), 20)), ("close", "finished")]
    assert told(tmp_path)[1:] == [{"kind": "tracker incomplete", "tracker": "slow", "lost": 12, "answers": True}]


def test_a_full_disk_does_not_reach_the_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "WAITING", 1)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    with stuck() as hang:
        to = Trackers({"broken": Fake("open", hang)}, EventLog(tmp_path / "no such folder" / "events.jsonl"))
        for step in range(4):
            to.log(step, {})
        to.close("finished")


def test_one_that_has_failed_keeps_nothing(tmp_path: Path) -> None:
    """What is sent to it is let go of, however long the run goes on."""

    class Values(dict[str, float]):
        """Can be referred to weakly."""

    to = opened(tmp_path, broken=Fake("open", lambda: throw(OSError())))
    kept = []
    for step in range(100):
        values = Values()
        kept.append(weakref.ref(values))
        to.log(step, values)
    del values
    to.close("finished")
    assert [reference() for reference in kept] == [None] * 100
