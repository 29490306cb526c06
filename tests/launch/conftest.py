"""A recipe that trains in a moment, and processes that a test has started and does not leave behind."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.scene import arguments, save_model
from tests.processes import ENVIRONMENT, is_alive

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
MARK = "LAUNCHED_BY_TEST"
Start = Callable[[Sequence[str], Path, Mapping[str, str]], subprocess.Popen[bytes]]


@pytest.fixture
def recipe(make_shards: Callable[..., Path], tmp_path: Path) -> list[str]:
    """The arguments of a run of 12 steps in tmp_path/runs/demo, with a checkpoint after every third."""
    save_model(tmp_path)
    return [*arguments(tmp_path / "runs", make_shards("shards"), tmp_path / "model")]


def marked(mark: str, *variables: str) -> list[int]:
    """The processes that live with a mark, and with the other variables as well."""
    wanted = {f"{MARK}={mark}".encode(), *(variable.encode() for variable in variables)}
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            pid = int(environment.parent.name)
            if wanted <= set(environment.read_bytes().split(b"\0")) and is_alive(pid):
                found.append(pid)
    return sorted(found)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command: (command, log, environment on top of this one's) -> process; its mark is tmp_path."""

    def begin(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        launched = {"TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
        env = {name: value for name, value in ENVIRONMENT.items() if name not in launched}
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=tmp_path,
                env={**env, **environment, MARK: str(tmp_path)},
            )

    yield begin
    for pid in marked(str(tmp_path)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
