"""Asking something of a run that goes on."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from finetune.control.requests import Action, Answer, answer_to, withdraw
from finetune.control.requests import ask as put
from finetune.errors import UserError
from finetune.live import parsed
from finetune.monitor.status import health, read_status
from finetune.runs.folder import RunFolder, read_config

GOING_ON = ("healthy", "paused")
LOOK_S = 0.2


def ask(
    run: RunFolder,
    action: Annotated[Action, typer.Argument(help="What is wanted.", show_default=False)],
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE …, for set.", show_default=False)] = None,
    wait_s: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for the answer; 0 does not wait.")] = 600.0,
) -> None:
    """Ask a run that goes on to save a checkpoint, draw its samples, stop once it has saved, or change a setting; it
    does so once the step that it is in is done. Every process that sees the folder may ask."""
    check_alive(run)
    assignments = checked_assignments(run, action, settings or [])
    try:
        ids = [put(run, action, assignment) for assignment in assignments]
    except OSError as error:
        raise UserError(f"{run}/control cannot be written ({error.strerror}): ask as somebody who may") from error
    refused = False
    for request, assignment in zip(ids, assignments, strict=True):
        what = f"{action} {assignment}".strip()
        answer = answered(run, request, time.monotonic() + wait_s)
        if answer is None:
            print(f"{what}: asked, and not answered yet; the answer will be {run}/control/answered/{request}.json")
        else:
            print(f"{what}: {outcome(answer)}")
            refused |= answer.refused is not None
    if refused:
        raise typer.Exit(1)


def check_alive(run: Path) -> None:
    """Raise UserError where nobody would answer."""
    state = health(read_status(run), time.time())
    if state not in GOING_ON:
        raise UserError(f"{run} is {state}, so that nobody would answer: start it, or change its recipe")


def checked_assignments(run: Path, action: Action, settings: Sequence[str]) -> Sequence[str]:
    """One for each request. Raises UserError where settings are missing, out of place or not allowed."""
    if action != "set":
        if settings:
            raise UserError(f"{action} takes no settings: leave out {' '.join(settings)}")
        return [""]
    if not settings:
        raise UserError("set takes what is to be set: KEY=VALUE, for instance optim.lr=2e-6")
    config = read_config(run)
    for assignment in settings:
        parsed(config, assignment, world=1)
    return settings


def answered(run: Path, request: str, until: float) -> Answer | None:
    """What has come of a request by a time; None if nothing has.

    Raises:
        UserError: the run has ended without answering; the request is withdrawn.
    """
    while (answer := answer_to(run, request)) is None and time.monotonic() < until:
        state = health(read_status(run), time.time())
        if state not in GOING_ON and answer_to(run, request) is None and withdraw(run, request):
            raise UserError(f"{run} is {state} by now and has not answered: start it again, and ask again")
        time.sleep(LOOK_S)
    return answer


def outcome(answer: Answer) -> str:
    """An answer as a sentence."""
    if answer.refused:
        return f"refused after step {answer.step:,}: {answer.refused}"
    return f"taken after step {answer.step:,}"
