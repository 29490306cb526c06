"""What is done around commands, and how they end."""

import os
from collections.abc import Callable

import pytest

from finetune.entry import ALLOCATOR, SEGMENTS, enter
from finetune.errors import Preempted, RankError, UserError
from finetune.parent import LAUNCHED


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*LAUNCHED, "LOCAL_RANK", *ALLOCATOR):
        monkeypatch.delenv(name, raising=False)


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def said(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[object, str]:
    """The exit code and what is printed."""
    with pytest.raises(SystemExit) as ended:
        enter(raising(error))
    return ended.value.code, capsys.readouterr().err


def test_a_command_ends_as_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    enter(lambda: None)
    with pytest.raises(ZeroDivisionError):
        enter(raising(ZeroDivisionError()))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (UserError("a mistake: mend it"), 2, "error: a mistake: mend it\n"),
        (UserError("a mistake\n    full_key: run"), 2, "error: a mistake\n"),
        (UserError("a mistake", details=["one", "two"]), 2, "error: a mistake\n  one\n  two\n"),
        (Preempted("stopped by SIGTERM after step 5"), 75, "stopped by SIGTERM after step 5\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_ends_that_are_meant_have_a_code_and_a_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str
) -> None:
    assert said(capsys, error) == (code, printed)


def test_one_rank_of_a_node_speaks_for_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert said(capsys, UserError("a mistake")) == (2, "")
    assert said(capsys, Preempted("stopped")) == (75, "")
    assert said(capsys, RankError("a mistake of its own")) == (2, "error: a mistake of its own\n")


def test_a_gpu_s_memory_is_had_in_segments_that_grow() -> None:
    enter(lambda: None)
    assert os.environ["PYTORCH_ALLOC_CONF"] == SEGMENTS


@pytest.mark.parametrize("name", ALLOCATOR)
def test_what_the_user_says_of_the_allocator_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    enter(lambda: None)
    assert {other: os.environ[other] for other in ALLOCATOR if other in os.environ} == {name: "max_split_size_mb:512"}
