"""The launcher ends as its workers do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.entry import MISTAKEN, PREEMPTED
from finetune.parent import LAUNCHED
from tests.distributed.test_restarts import WORKER as RESTARTED

WORKER = """
import os, signal, sys, time
from pathlib import Path
rank, how = os.environ["RANK"], sys.argv[1]
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "asked":
    signal.signal(signal.SIGTERM, lambda *_: (Path(f"saved-{rank}").touch(), sys.exit(75)))
    Path(f"ready-{rank}").touch()
    time.sleep(60)
if int(how) and rank == "0":
    time.sleep(600)  # until the launcher ends it
sys.exit(int(how))
"""


def start(folder: Path, how: str, *arguments: str, worker: str = WORKER) -> subprocess.Popen[str]:
    """Two workers that end in some way."""
    (folder / "worker.py").write_text(worker)
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    command = [sys.executable, "-m", "finetune.launch", "--standalone", "--nproc_per_node", "2", *arguments]
    return subprocess.Popen(
        [*command, "worker.py", how],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("how", "code"), [("0", 0), ("1", 1), (str(MISTAKEN), MISTAKEN), (str(PREEMPTED), PREEMPTED), ("killed", 1)]
)
def test_it_ends_with_the_code_of_the_worker_that_failed_first(how: str, code: int, tmp_path: Path) -> None:
    process = start(tmp_path, how)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said


def test_asked_to_stop_it_lets_its_workers_save(tmp_path: Path) -> None:
    process = start(tmp_path, "asked")
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, said
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_arguments_that_torchrun_does_not_know_are_a_mistake(tmp_path: Path) -> None:
    process = start(tmp_path, "0", "--no_such_thing")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == MISTAKEN, said


@pytest.mark.slow
@pytest.mark.faults
def test_workers_that_are_started_again_find_each_other(tmp_path: Path) -> None:
    process = start(tmp_path, "0", "--max_restarts", "2", worker=RESTARTED)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert {path.name: path.read_text() for path in tmp_path.glob("?-?")} == {"2-0": "[0, 1]", "2-1": "[0, 1]"}
