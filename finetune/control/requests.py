"""Requests to a run: files that anybody who may write to its folder puts there, and that the run answers.

A request is `control/ID.json`. Once the run has seen to it, the file is gone and `control/answered/ID.json` tells what
came of it.
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from finetune.monitor.files import read_lines, replace_text

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
    """The requests to a run, as rank 0 finds them. Others write to the folder: nothing that is in it, or that cannot be
    done in it, raises anything."""

    def __init__(self, run: Path) -> None:
        """Make the folder, so that others can put something there."""
        self._folder = run / FOLDER
        (self._folder / ANSWERED).mkdir(parents=True, exist_ok=True)
        self._looked = 0.0
        self._waiting = False
        self._stuck: set[str] = set()
        """Names of files that were answered and could not be removed."""

    def waiting(self) -> bool:
        """Whether there are requests. Looks at most once in POLL_S, so that it may be called in every step."""
        if time.monotonic() - self._looked >= POLL_S:
            self._looked = time.monotonic()
            self._waiting = bool(self._there())
        return self._waiting

    def read(self) -> list[Request]:
        """The requests in the order in which they were made. What is none is answered so at once."""
        self._waiting = False
        found = []
        for path in sorted(self._there()):
            try:
                found.append(_read(path))
            except FileNotFoundError:  # withdrawn
                continue
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                self._move(path.stem, {"step": None, "refused": f"it is no request: {error}"})
        return found

    def answer(self, request: Request, answer: Answer) -> None:
        """Write down what came of a request."""
        self._move(request.id, {**asdict(request), **asdict(answer)})

    def _there(self) -> list[Path]:
        """Files alone: a pipe would be waited for."""
        with suppress(OSError), os.scandir(self._folder) as entries:
            return [path for one in entries if self._is_new(one.name) and (path := Path(one.path)).is_file()]
        return []

    def _is_new(self, name: str) -> bool:
        return name.endswith(".json") and not name.startswith(".") and name not in self._stuck

    def _move(self, request: str, answer: dict[str, Any]) -> None:
        with suppress(OSError):  # a full disk
            replace_text(self._folder / ANSWERED / f"{request}.json", json.dumps(answer, indent=1))
        try:
            (self._folder / f"{request}.json").unlink(missing_ok=True)
        except OSError:
            self._stuck.add(f"{request}.json")


def keep_setting(run: Path, step: int, key: str, value: Any) -> None:
    """Write down that a setting holds from a step on, before it does: a run that is killed before its next checkpoint
    finds it again. Raises OSError where it is not kept."""
    # Anew as a whole: what is appended to a line that was cut short could not be read any more.
    rows = [*kept_settings(run), {"step": step, "key": key, "value": value}]
    replace_text(run / FOLDER / SETTINGS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def kept_settings(run: Path) -> Sequence[dict[str, Any]]:
    """All that was ever set, in that order: `step`, `key`, `value`."""
    return read_lines(run / FOLDER / SETTINGS)


def _read(path: Path) -> Request:
    with path.open("rb") as file:
        text = file.read(LONGEST_BYTES + 1)
    if len(text) > LONGEST_BYTES:
        raise ValueError(f"it has more than {LONGEST_BYTES} bytes")
    plain = json.loads(text)
    if plain["action"] not in ACTIONS:
        raise ValueError(f"there is no {plain['action']!r}, but {', '.join(ACTIONS)}")
    request = Request(path.stem, plain["action"], str(plain["assignment"]), str(plain["asked_by"]))
    if not (request.assignment + request.asked_by).isprintable():  # it is shown on the run's terminal
        raise ValueError("it has characters that cannot be shown")
    return request


def _asker() -> str:
    return f"{os.environ.get('USER', os.getuid())}@{socket.gethostname()}"
