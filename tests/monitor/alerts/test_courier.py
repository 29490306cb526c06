"""Deliveries that fail, against real servers."""

from queue import SimpleQueue

import pytest

from finetune.monitor.alerts import courier as module
from finetune.monitor.alerts import places as places_module
from finetune.monitor.alerts.courier import Courier, Outcome
from finetune.monitor.alerts.outbox import Letter
from finetune.monitor.alerts.places import places
from finetune.monitor.alerts.rules import Alert
from tests.monitor.alerts.receivers import Receiver, http_receiver, wait_for

LETTERS = [Letter(Alert("failed", "failure", f"failed {i}"), ["ntfy (1)"]) for i in range(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(places_module, "APART_S", 0.0)


def taken(outcomes: "SimpleQueue[Outcome]") -> list[Outcome]:
    return [outcomes.get(timeout=60) for _ in LETTERS]


def sent(receiver: Receiver, outcomes: "SimpleQueue[Outcome]") -> Courier:
    """A courier that has been given all letters."""
    courier = Courier(places([receiver.ntfy])[0], "fox", outcomes)
    for letter in LETTERS:
        courier.deliver(letter)
    return courier


@pytest.mark.parametrize("status", [500, 429])
def test_it_goes_on_until_it_is_taken_and_in_order(status: int, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    with http_receiver() as receiver:
        receiver.status = status
        courier = sent(receiver, outcomes)
        wait_for(lambda: len(receiver.posts) > 3)
        assert outcomes.empty()
        receiver.status = 200
        assert taken(outcomes) == [Outcome(letter, "ntfy (1)") for letter in LETTERS]
        courier.close()
    assert receiver.titles == ["fox: failed 0", "fox: failed 1", "fox: failed 2"]
    assert capfd.readouterr().err.count(f"not delivered: failed 0 (answered with {status})") == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_alert_that_will_never_be_taken_holds_up_no_other(status: int, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    with http_receiver() as receiver:
        receiver.status = status
        courier = sent(receiver, outcomes)
        assert [outcome.letter for outcome in taken(outcomes)] == LETTERS
        courier.close()
    assert len(receiver.posts) == len(LETTERS)
    assert f"not delivered: failed 0 (answered with {status}); given up" in capfd.readouterr().err


def test_in_the_end_it_gives_up_and_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "GIVE_UP_AFTER_S", 0.1)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    courier = Courier(places(["ntfy://127.0.0.1:1/topic"])[0], "fox", outcomes)
    for letter in LETTERS:
        courier.deliver(letter)
    assert len(taken(outcomes)) == 3
    courier.close()
    assert "ntfy (1)  not delivered: failed 2 (no connection, or no answer); given up" in capfd.readouterr().err


def test_what_is_left_when_it_is_closed_is_not_done_with() -> None:
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    with http_receiver() as receiver:
        receiver.status = 500
        courier = Courier(places([receiver.ntfy])[0], "fox", outcomes)
        for letter in LETTERS:
            courier.deliver(letter)
        wait_for(lambda: receiver.posts)
        courier.close()
    assert outcomes.empty()
