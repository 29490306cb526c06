"""Requests to a run: files that anybody who may write to its folder puts there, and that the run answers.

A request is `control/ID.json`. Once the run has seen to it, the file is gone and `control/answered/ID.json` tells what
came of it.
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from finetune.monitor.files import append_lines, read_lines, replace_text

FOLDER, ANSWERED, SETTINGS = "control", "answered", "settings.jsonl"
Action = Literal["save", "sample", "stop", "set"]
ACTIONS: tuple[Action, ...] = get_args(Action)
LONGEST_BYTES = 64 * 1024
POLL_S = 1.0
"""Seconds between two looks into the folder."""


@dataclass(frozen=True)
class Request:
    """What somebody wants of a run."""

    id: str
    action: Action
    assignment: str
    """KEY=VALUE for `set`, else empty."""
    asked_by: str
    """USER@HOST."""


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    step: int
    """The steps that were done when the run took it."""
    refused: str | None
    """Why not; None where it is done, or begun: a checkpoint is written in the background."""


def ask(run: Path, action: Action, assignment: str = "") -> str:
    """Put a request into a run's folder; its id. Requests are taken in the order of their ids."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    request = Request(f"{time.time_ns():020d}-{uuid4().hex[:6]}", action, assignment, _asker())
    replace_text(folder / f"{request.id}.json", json.dumps(asdict(request)))
    return request.id


def answer_to(run: Path, request: str) -> Answer | None:
    """What came of a request; None as long as the run has not taken it."""
    path = run / FOLDER / ANSWERED / f"{request}.json"
    if not path.is_file():
        return None
    plain = json.loads(path.read_text(encoding="utf-8"))
    return Answer(plain["step"], plain["refused"])


def withdraw(run: Path, request: str) -> bool:
    """Take a request back; whether it still lay there."""
    try:
        (run / FOLDER / f"{request}.json").unlink()
    except FileNotFoundError:
        return False
    return True


class Inbox:
    """The requests to a run, as rank 0 finds them."""

    def __init__(self, run: Path) -> None:
        """Make the folder, so that others can put something there."""
        self._folder = run / FOLDER
        (self._folder / ANSWERED).mkdir(parents=True, exist_ok=True)
        self._looked = 0.0
        self._waiting = False

    def waiting(self) -> bool:
        """Whether there are requests. Looks at most once in POLL_S, so that it may be called in every step."""
        if time.monotonic() - self._looked >= POLL_S:
            self._looked = time.monotonic()
            self._waiting = any(_is_request(entry.name) for entry in os.scandir(self._folder))
        return self._waiting

    def read(self) -> list[Request]:
        """The requests in the order in which they were made. What is none is answered so at once."""
        self._waiting = False
        found = []
        for path in sorted(path for path in self._folder.iterdir() if _is_request(path.name)):
            try:
                found.append(_read(path))
            except (ValueError, TypeError, KeyError) as error:
                self._move(path.stem, {"step": None, "refused": f"it is no request: {error}"})
        return found

    def answer(self, request: Request, answer: Answer) -> None:
        """Write down what came of a request."""
        self._move(request.id, {**asdict(request), **asdict(answer)})

    def _move(self, request: str, answer: dict[str, Any]) -> None:
        replace_text(self._folder / ANSWERED / f"{request}.json", json.dumps(answer, indent=1))
        (self._folder / f"{request}.json").unlink(missing_ok=True)


def keep_setting(run: Path, step: int, key: str, value: Any) -> None:
    """Write down that a setting holds from a step on, before it does: a run that is killed before its next checkpoint
    finds it again."""
    append_lines(run / FOLDER / SETTINGS, [{"step": step, "key": key, "value": value}])


def kept_settings(run: Path) -> Sequence[dict[str, Any]]:
    """All that was ever set, in that order: `step`, `key`, `value`."""
    return read_lines(run / FOLDER / SETTINGS)


def _is_request(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def _read(path: Path) -> Request:
    with path.open("rb") as file:
        text = file.read(LONGEST_BYTES + 1)
    if len(text) > LONGEST_BYTES:
        raise ValueError(f"it has more than {LONGEST_BYTES} bytes")
    plain = json.loads(text)
    if plain["action"] not in ACTIONS:
        raise ValueError(f"there is no {plain['action']!r}, but {', '.join(ACTIONS)}")
    return Request(path.stem, plain["action"], str(plain["assignment"]), str(plain["asked_by"]))


def _asker() -> str:
    return f"{os.environ.get('USER', os.getuid())}@{socket.gethostname()}"
