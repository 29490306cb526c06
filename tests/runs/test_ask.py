"""Asking a run: what is refused before anybody is asked, and what is told of the answer."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from omegaconf import OmegaConf

from finetune.config import resolved
from finetune.control.requests import FOLDER, Answer, Inbox, Request
from finetune.errors import UserError
from finetune.monitor.files import replace_text
from finetune.recipes import read_recipe
from finetune.runs.ask import ask


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that says that it goes on."""
    OmegaConf.save(OmegaConf.create(resolved(read_recipe(["conf=demo"]))), tmp_path / "config.yaml")
    write_status(tmp_path, "running")
    return tmp_path


def write_status(run: Path, state: str) -> None:
    status = {"state": state, "heartbeat": time.time(), "heartbeat_s": 60.0, "name": "demo", "step": 3}
    replace_text(run / "status.json", json.dumps(status))


@contextmanager
def answering(run: Path, refused: str | None) -> Iterator[list[Request]]:
    """A run that answers all requests after its seventh step."""
    inbox, found, over = Inbox(run), list[Request](), threading.Event()

    def answer() -> None:
        while not over.wait(0.01):
            for request in inbox.read():
                found.append(request)
                inbox.answer(request, Answer(7, refused))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_what_was_done_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(run, None) as found:
        ask(run, "set", ["optim.lr=2e-6", "checkpoint.every_steps=50"])
        ask(run, "save")
    assert [(one.action, one.assignment) for one in found] == [
        ("set", "optim.lr=2e-6"),
        ("set", "checkpoint.every_steps=50"),
        ("save", ""),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "set optim.lr=2e-6: taken after step 7",
        "set checkpoint.every_steps=50: taken after step 7",
        "save: taken after step 7",
    ]


def test_what_was_refused_is_told_and_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(run, "there are no prompts"), pytest.raises(typer.Exit) as ended:
        ask(run, "sample")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().out == "sample: refused after step 7: there are no prompts\n"


def test_an_answer_need_not_be_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(run, "save", wait_s=0.0)
    assert "not answered yet" in capsys.readouterr().out
    assert len(list((run / FOLDER).glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("action", "settings", "told"),
    [
        ("set", [], "set takes what is to be set: KEY=VALUE"),
        ("set", ["optim.betas=[0.9, 0.9]"], "optim.betas cannot be set while a run goes on"),
        ("set", ["optim.lr=2e-6", "optim.lr=fast"], "optim.lr"),
        ("save", ["optim.lr=2e-6"], "save takes no settings: leave out optim.lr=2e-6"),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(run: Path, action: str, settings: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        ask(run, action, settings)  # type: ignore[arg-type]
    assert not list(run.glob(f"{FOLDER}/*.json"))


@pytest.mark.parametrize("state", ["finished", "failed", "preempted", "stopped"])
def test_a_run_that_does_not_go_on_is_not_asked(run: Path, state: str) -> None:
    write_status(run, state)
    with pytest.raises(UserError, match=f"is {state}, so that nobody would answer"):
        ask(run, "save")


def test_a_run_that_ends_meanwhile_is_not_waited_for(run: Path) -> None:
    ended = threading.Timer(0.3, write_status, (run, "finished"))
    ended.start()
    with pytest.raises(UserError, match="is finished by now and has not answered"):
        ask(run, "save")
    assert not list(run.glob(f"{FOLDER}/*.json"))


def test_who_may_not_write_is_told_so(run: Path) -> None:
    (run / FOLDER).write_text("where no file can be put")
    with pytest.raises(UserError, match="control cannot be written"):
        ask(run, "save")


@pytest.mark.parametrize("text", [b"{: [", b"\xff"])
def test_a_recipe_that_is_damaged_is_a_sentence(run: Path, text: bytes) -> None:
    (run / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match="not what a run has written"):
        ask(run, "set", ["optim.lr=2e-6"])
