"""Requests: put down by anybody, taken in order, answered."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.control.requests import (
    ANSWERED,
    FOLDER,
    LONGEST_BYTES,
    Answer,
    Inbox,
    answer_to,
    ask,
    keep_setting,
    kept_settings,
    withdraw,
)


def test_requests_are_taken_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    ids = [ask(tmp_path, "set", f"optim.lr={i}") for i in range(20)]
    assert [request.id for request in inbox.read()] == ids
    assert [request.assignment for request in inbox.read()] == [f"optim.lr={i}" for i in range(20)]


def test_an_answer_takes_the_place_of_its_request(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    first, second = ask(tmp_path, "save"), ask(tmp_path, "stop")
    assert answer_to(tmp_path, first) is None
    inbox.answer(inbox.read()[0], Answer(7, None))
    assert answer_to(tmp_path, first) == Answer(7, None)
    assert [request.id for request in inbox.read()] == [second]
    inbox.answer(inbox.read()[0], Answer(8, "no"))
    assert answer_to(tmp_path, second) == Answer(8, "no")
    assert inbox.read() == []


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def an_endless_file(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("made", [a_folder, a_pipe, a_loop, a_dangling_link, an_endless_file])
def test_what_is_no_file_is_passed_over(tmp_path: Path, made: Callable[[Path], None]) -> None:
    inbox = Inbox(tmp_path)
    made(tmp_path / FOLDER / "1.json")
    assert not inbox.waiting()
    good = ask(tmp_path, "save")
    assert [request.id for request in inbox.read()] == [good]


def test_a_request_that_cannot_be_answered_or_removed_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path)
    ask(tmp_path, "save")
    (request,) = inbox.read()

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("finetune.control.requests.replace_text", fail)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        inbox.answer(request, Answer(1, None))
    assert inbox.read() == []
    assert (tmp_path / FOLDER / f"{request.id}.json").exists()
    monkeypatch.undo()
    later = ask(tmp_path, "stop")
    assert [request.id for request in inbox.read()] == [later]


def test_a_request_with_a_name_too_long_to_be_answered_is_removed(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    (tmp_path / FOLDER / f"{'a' * 250}.json").write_text("{")
    assert inbox.read() == []
    assert not list((tmp_path / FOLDER).glob("*.json"))


def test_a_folder_that_is_gone_holds_no_requests(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    shutil.rmtree(tmp_path / FOLDER)
    assert not inbox.waiting()
    assert inbox.read() == []


def test_whether_there_are_requests_is_looked_up_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("finetune.control.requests.time.monotonic", lambda: now)
    inbox = Inbox(tmp_path)
    assert not inbox.waiting()
    ask(tmp_path, "save")
    now += 0.5
    assert not inbox.waiting()
    now += 0.6
    assert inbox.waiting()


def test_a_request_can_be_withdrawn_until_it_is_answered(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    request = ask(tmp_path, "save")
    assert withdraw(tmp_path, request)
    assert not inbox.read()
    assert not withdraw(tmp_path, request)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no request"),
        ("[]", "no request"),
        ("{}", "no request"),
        (json.dumps({"action": "rm", "assignment": "", "asked_by": "x"}), "there is no 'rm', but save, sample"),
        ("x" * (LONGEST_BYTES + 1), f"more than {LONGEST_BYTES} bytes"),
        ("\udcff", "no request"),
        (json.dumps({"action": "save", "assignment": "", "asked_by": "\x1b[2Jx"}), "characters that cannot be shown"),
        (json.dumps({"action": "set", "assignment": "a=\ud800", "asked_by": "x"}), "characters that cannot be shown"),
        ("[" * 50_000, "no request"),
        ('{"action": "save", "assignment": "", "asked_by": "\\ud800"}', "characters that cannot be shown"),
    ],
)
def test_what_is_no_request_is_set_aside_with_the_reason(tmp_path: Path, text: str, told: str) -> None:
    inbox = Inbox(tmp_path)
    (tmp_path / FOLDER / "1.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    good = ask(tmp_path, "save")
    assert [request.id for request in inbox.read()] == [good]
    assert told in json.loads((tmp_path / FOLDER / ANSWERED / "1.json").read_text())["refused"]
    assert not (tmp_path / FOLDER / "1.json").exists()


def test_what_a_request_says_of_its_own_name_is_not_believed(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    request = {"id": "../../outside", "action": "save", "assignment": "", "asked_by": "x"}
    (tmp_path / FOLDER / "1.json").write_text(json.dumps(request))
    (found,) = inbox.read()
    inbox.answer(found, Answer(1, None))
    assert found.id == "1"
    assert not (tmp_path.parent / "outside.json").exists()


def test_half_a_request_is_not_seen(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    (tmp_path / FOLDER / ".1.json.tmp").write_text('{"action"')
    assert not inbox.waiting()
    assert not inbox.read()


def test_settings_are_kept_in_order(tmp_path: Path) -> None:
    Inbox(tmp_path)
    assert list(kept_settings(tmp_path)) == []
    keep_setting(tmp_path, 7, "optim.lr", 1e-6)
    keep_setting(tmp_path, 5, "optim.lr", None)
    assert [tuple(line.values()) for line in kept_settings(tmp_path)] == [(7, "optim.lr", 1e-6), (5, "optim.lr", None)]


def test_a_setting_that_did_not_fit_on_the_disk_harms_none_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inbox(tmp_path)
    keep_setting(tmp_path, 7, "optim.lr", 1e-6)

    def full(number: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.monitor.files.os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            keep_setting(tmp_path, 8, "optim.lr", 2e-6)
    keep_setting(tmp_path, 9, "optim.lr", 3e-6)
    assert [line["step"] for line in kept_settings(tmp_path)] == [7, 9]


def test_what_cannot_be_read_now_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is withdrawn while it is looked at, and a file system that is away."""
    inbox = Inbox(tmp_path)
    first, second = ask(tmp_path, "save"), ask(tmp_path, "stop")
    lying = [tmp_path / FOLDER / f"{request}.json" for request in (first, second)]
    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "_there", lambda inbox: lying)
        assert withdraw(tmp_path, first)
        assert [request.id for request in inbox.read()] == [second]

    def away(folder: Path) -> None:
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.control.requests.os.scandir", away)
        assert not Inbox(tmp_path).waiting()
        assert inbox.read() == []
    assert [request.id for request in inbox.read()] == [second]
