"""A run that dies in the same step again and again."""

from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Preempted, UserError
from finetune.lifecycle.starts import FILE_NAME, Start, ended, last_began, repeated_crashes, started, starts_before
from finetune.monitor.files import read_lines
from tests.lifecycle.test_lock import Ranks

MAX = 3


def begin(folder: Path, killed_at: int = 0, *, limit: int = MAX, step: int = 0) -> Start:
    start = Start(folder, step)
    start.begin(killed_at=killed_at, killed_by="killed", max_crashes_at_step=limit)
    return start


def fail(folder: Path, step: int, error: BaseException) -> None:
    """A start that ends with an error in a step."""

    def run() -> None:
        with started(folder, Ranks(0), 0, killed_at=0, killed_by="", max_crashes_at_step=MAX) as start:
            start.step = step
            raise error

    with pytest.raises(type(error)):
        run()


def states(folder: Path) -> list[str]:
    return [row["state"] for row in read_lines(folder / FILE_NAME) if row["kind"] == "ended"]


def test_three_kills_in_one_step_stop_the_fourth_start(tmp_path: Path) -> None:
    for killed_at in (0, 41, 41):
        begin(tmp_path, killed_at)
    with pytest.raises(
        UserError, match=r"last 3 starts crashed in step 42: mend .* run\.max_crashes_at_step=4"
    ) as refused:
        begin(tmp_path, 41)
    assert [line.split("  ")[1] for line in refused.value.details] == ["killed"] * 3


def test_starts_before_this_one_are_counted_however_they_ended(tmp_path: Path) -> None:
    assert starts_before(tmp_path) == 0
    for before in range(3):
        begin(tmp_path, killed_at=before)
        assert starts_before(tmp_path) == before
    fail(tmp_path, 5, Preempted("saved"))
    begin(tmp_path)
    assert starts_before(tmp_path) == 4


def test_a_refusal_is_no_crash_and_a_higher_limit_tries_again(tmp_path: Path) -> None:
    for killed_at in (0, 41, 41):
        begin(tmp_path, killed_at)
    for _ in range(3):
        with pytest.raises(UserError, match="last 3 starts"):
            begin(tmp_path, 41)
    begin(tmp_path, 41, limit=4)
    with pytest.raises(UserError, match="last 4 starts"):
        begin(tmp_path, 41)
    begin(tmp_path, 41, limit=0)


def test_kills_in_different_steps_are_no_loop(tmp_path: Path) -> None:
    for killed_at in range(0, 200, 10):
        begin(tmp_path, killed_at)


def test_exceptions_count_with_their_reasons(tmp_path: Path) -> None:
    for number in range(MAX):
        fail(tmp_path, 7, RuntimeError(f"out of luck {number}"))
    with pytest.raises(UserError, match="step 8") as refused:
        begin(tmp_path)
    assert [line.split("  ")[1] for line in refused.value.details] == [
        f"RuntimeError: out of luck {number}" for number in range(MAX)
    ]


@pytest.mark.parametrize("error", [Preempted("saved"), UserError("a mistake"), KeyboardInterrupt()])
def test_what_ends_on_purpose_is_no_crash(tmp_path: Path, error: BaseException) -> None:
    for _ in range(2 * MAX):
        fail(tmp_path, 7, error)
    begin(tmp_path)
    assert len(set(states(tmp_path))) == 1
    assert "failed" not in states(tmp_path)


def test_a_mistake_between_crashes_is_not_taken_for_another_crash(tmp_path: Path) -> None:
    """The step at which the run was killed stays on disk while starts end before they train."""
    begin(tmp_path)
    for _ in range(MAX):
        with (
            pytest.raises(UserError),
            started(tmp_path, Ranks(0), 0, killed_at=41, killed_by="killed", max_crashes_at_step=MAX),
        ):
            raise UserError("no such model")
    begin(tmp_path, 41)
    assert states(tmp_path) == ["killed", *["mistaken"] * MAX]


def test_a_finished_start_says_so(tmp_path: Path) -> None:
    with started(tmp_path, Ranks(0), 5, killed_at=0, killed_by="", max_crashes_at_step=MAX) as start:
        start.step = 9
    began, end = read_lines(tmp_path / FILE_NAME)
    assert (began["kind"], began["step"]) == ("began", 5)
    assert (end["kind"], end["step"], end["state"], end["reason"]) == ("ended", 9, "finished", "")
    assert last_began(tmp_path) == began


def test_rank_0_writes_and_all_ranks_are_refused(tmp_path: Path) -> None:
    with started(tmp_path, Ranks(1), 0, killed_at=0, killed_by="", max_crashes_at_step=MAX):
        pass
    assert not (tmp_path / FILE_NAME).exists()
    told = (None, (True, "crashed too often"))
    with (
        pytest.raises(UserError, match="crashed too often"),
        started(tmp_path, Ranks(1, told), 0, killed_at=0, killed_by="", max_crashes_at_step=MAX),
    ):
        pytest.fail("rank 1 was not told")


def test_a_line_that_was_cut_short_is_forgotten(tmp_path: Path) -> None:
    begin(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text() + '{"kind": "ended", "st')
    begin(tmp_path, 41)
    assert [row["kind"] for row in read_lines(path)] == ["began", "ended", "began"]


def end(state: str, step: int) -> dict[str, Any]:
    return ended(state, step, "")


@pytest.mark.parametrize(
    ("ends", "crashes"),
    [
        ([], 0),
        ([end("killed", 9)], 1),
        ([end("killed", 9), end("finished", 9)], 0),
        ([end("killed", 9), end("killed", 5), end("failed", 9)], 2),
        ([end("killed", 9), end("preempted", 5), end("failed", 9)], 2),
        ([end("killed", 9), end("killed", 10), end("killed", 9)], 1),
        ([end("killed", 9), end("preempted", 20), end("killed", 9)], 1),
    ],
)
def test_crashes_are_counted_since_the_run_was_beyond_the_step(ends: list[dict[str, Any]], crashes: int) -> None:
    assert len(repeated_crashes(ends)) == crashes
