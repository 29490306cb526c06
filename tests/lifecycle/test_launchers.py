"""What real launchers do with signals reaches the workers as one request to stop, and leaves none of them behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import processes

pytestmark = pytest.mark.slow
WORKER = """
import os, sys, time
from pathlib import Path
from finetune.entry import enter
from finetune.errors import Preempted
from finetune.lifecycle.signals import StopSignals

def work():
    rank = os.environ.get("RANK", "0")
    with StopSignals() as stop:
        Path("pid").with_suffix(f".{rank}").write_text(str(os.getpid()))
        Path(f"ready-{rank}").touch()
        while not stop.requested:
            time.sleep(0.01)
        time.sleep(1.0)  # as saving takes its time
        Path(f"saved-{rank}").touch()
        raise Preempted(f"stopped by {stop.reason}")

enter(work)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
ACCELERATE = [
    *("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]


def to_launcher(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


def to_all(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.killpg(pid, number)


@pytest.mark.parametrize(
    ("launcher", "ranks", "send"),
    [
        pytest.param(TORCHRUN, 2, to_launcher(signal.SIGTERM), id="torchrun-TERM"),
        pytest.param(TORCHRUN, 2, to_all(signal.SIGINT), id="torchrun-INT-all"),
        pytest.param(TORCHRUN, 2, to_launcher(signal.SIGUSR1), id="torchrun-USR1"),
        pytest.param(TORCHRUN, 2, to_launcher(signal.SIGKILL), id="torchrun-KILL"),
        pytest.param(ACCELERATE, 1, to_all(signal.SIGINT), id="accelerate-INT-all"),
        pytest.param(ACCELERATE, 1, to_launcher(signal.SIGTERM), id="accelerate-TERM"),
        pytest.param(ACCELERATE, 1, to_launcher(signal.SIGKILL), id="accelerate-KILL"),
    ],
)
def test_every_rank_saves_and_none_stays(
    tmp_path: Path, launcher: list[str], ranks: int, send: Callable[[int], None]
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "TORCHELASTIC_RUN_ID"}}
    command = [sys.executable, *launcher, "worker.py"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path, env=environment
        )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready-*"))) < ranks:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    send(process.pid)
    assert process.wait(60) != 0
    for path in tmp_path.glob("pid.*"):  # each is in a session of its own, in which torchrun starts it
        assert processes.ends(int(path.read_text()), 20)
    said = (tmp_path / "log").read_text()
    assert len(list(tmp_path.glob("saved-*"))) == ranks, said
    assert said.count("stopped by") == 1
