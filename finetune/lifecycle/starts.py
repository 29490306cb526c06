"""starts.jsonl: when a run began and how each of its starts ended; a run that dies again and again at one step stops.

A start that was killed has not written its end: the next one does so for it.
"""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.errors import Preempted, Stopped, UserError
from finetune.monitor.files import read_lines, replace_text
from finetune.ranks import Ranks, on_main
from finetune.redact import redacted

FILE_NAME = "starts.jsonl"
CRASHES = ("failed", "killed")
LONGEST_REASON = 300


class Start:
    """One start of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        """A start that trains step `step` first, counted from 0."""
        self.step = step
        """The step being trained, which the loop keeps up to date."""
        self._path = folder / FILE_NAME

    def begin(self, *, killed_at: int, killed_by: str, max_crashes_at_step: int) -> None:
        """Write down that it begins, unless the starts before it have crashed too often at one step.

        Args:
            killed_at: the step that the start before this one was training if it has been killed, counted from 0.
            killed_by: what is known of that.
            max_crashes_at_step: 0 lets a run start as often as it likes.

        Raises:
            UserError: they have.
        """
        rows = read_lines(self._path)
        if rows and rows[-1]["kind"] == "began":
            rows.append(ended("killed", killed_at, killed_by))
            self._write(rows)
        crashes = repeated_crashes([row for row in rows if row["kind"] == "ended"])
        if max_crashes_at_step and len(crashes) >= max_crashes_at_step:
            raise UserError(
                f"the last {len(crashes)} starts crashed in step {crashes[-1]['step'] + 1:,}: mend what they died of, "
                f"or try again with run.max_crashes_at_step={len(crashes) + 1} (0 tries for ever)",
                details=[f"{row['time']}  {row['reason']}" for row in crashes],
            )
        self._write([*rows, {**_row("began", self.step), "host": socket.gethostname(), "pid": os.getpid()}])

    def end(self, error: BaseException | None) -> None:
        """Write down how it ends; on a full disk that is left to the next start."""
        reason = f"{type(error).__name__}: {error}" if error else ""
        with suppress(OSError):
            self._write([*read_lines(self._path), ended(_state(error), self.step, reason)])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        # Anew as a whole: what is appended to a line that was cut short could not be read any more.
        replace_text(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def started(
    folder: Path,
    ranks: Ranks,
    step: int,
    *,
    killed_at: int,
    killed_by: str,
    max_crashes_at_step: int,
) -> Iterator[Start]:
    """A start of a run from step `step` on, which rank 0 writes down; all ranks enter. See `Start.begin`.

    Raises:
        UserError: the run has crashed too often at one step; on all ranks.
    """
    start = Start(folder, step)
    on_main(
        ranks,
        lambda: start.begin(killed_at=killed_at, killed_by=killed_by, max_crashes_at_step=max_crashes_at_step),
    )
    error: BaseException | None = None
    try:
        yield start
    except BaseException as raised:
        error = raised
        raise
    finally:
        if ranks.is_main:
            start.end(error)


def repeated_crashes(ends: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The crashes in the step of the last one, since the run was last beyond it; none where it ended well."""
    if not ends or ends[-1]["state"] not in CRASHES:
        return []
    found, step = [], ends[-1]["step"]
    for end in reversed(ends):
        if end["step"] > step:
            break
        if end["step"] == step and end["state"] in CRASHES:
            found.append(end)
    return found[::-1]


def last_began(folder: Path) -> dict[str, Any] | None:
    """The last beginning in a run's folder: `time`, `host`, `pid` and `step`; None where there is none."""
    return next((row for row in reversed(read_lines(folder / FILE_NAME)) if row["kind"] == "began"), None)


def starts_before(folder: Path) -> int:
    """How often the run in a folder had begun before its last beginning."""
    return max(0, len([row for row in read_lines(folder / FILE_NAME) if row["kind"] == "began"]) - 1)


def end_before(folder: Path) -> str | None:
    """How the start before the last beginning of the run in a folder had ended; None where that was the first."""
    return next((row["state"] for row in reversed(read_lines(folder / FILE_NAME)) if row["kind"] == "ended"), None)


def ended(state: str, step: int, reason: str) -> dict[str, Any]:
    """The row of a start's end."""
    return {**_row("ended", step), "state": state, "reason": redacted(" ".join(reason.split()))[:LONGEST_REASON]}


def _row(kind: str, step: int) -> dict[str, Any]:
    return {"kind": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step}


def _state(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    known = {Preempted: "preempted", UserError: "mistaken", Stopped: "stopped", KeyboardInterrupt: "stopped"}
    return next((state for kind, state in known.items() if isinstance(error, kind)), "failed")
