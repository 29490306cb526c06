"""Starting the real command in real processes, and killing them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from tests.forks import Fork, begun, ended

DEADLINE_S = 300
ORPHANS_S = 30
"""How long what a killed launcher has started may live on."""
MARK = "LAUNCHED_WITH_PORT"
"""A variable by which all processes of a launch are known: torchrun gives each worker a session of its own."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def launch(
    log: Path,
    *arguments: str,
    processes: int,
    restarts: int = 0,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start `accelerate launch -m finetune` in a session of its own; what it says goes to a file.

    Args:
        restarts: how often the launcher may start the processes anew.
        environment: on top of this process's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(Path(sys.executable).with_name("accelerate")), "launch"),
        *(["--multi_gpu"] if processes > 1 else []),
        *(["--max_restarts", str(restarts)] if restarts else []),
        *("--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", str(port), "-m", "finetune", *arguments),
    ]
    log.parent.mkdir(exist_ok=True)
    env = {**ENVIRONMENT, **environment, MARK: str(port)}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=env)


def finish(process: subprocess.Popen[bytes], run: Path, log: Path) -> None:
    """Wait for a run to end well."""
    process.wait(timeout=DEADLINE_S)
    assert_finished(run, log)


def trained(run: Path, log: Path, *arguments: str, processes: int = 1) -> Path:
    """Do a run, in processes that are forked and have no launcher; its folder."""
    ended(log, "finetune", *arguments, processes=processes)
    assert_finished(run, log)
    return run


def killed_when(reached: Callable[[], bool], log: Path, *arguments: str, processes: int) -> None:
    """Begin a run in forked processes; SIGKILL them and their loaders a moment after something has been reached."""
    ranks = begun(log, "finetune", *arguments, processes=processes)
    wait_until(ranks[0], reached, log)
    time.sleep(0.2)
    kill(ranks)


def kill(ranks: Sequence[Fork]) -> None:
    """SIGKILL forked processes and their loaders."""
    for rank in ranks:
        os.killpg(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait()


def assert_finished(run: Path, log: Path) -> None:
    """A run has ended well. Its state is judged and not the exit code: gloo's threads sometimes abort after all is
    done."""
    assert run.is_dir(), log.read_text()[-4000:]
    assert json.loads((run / "status.json").read_text())["state"] == "finished", log.read_text()[-4000:]


def kill_launcher_when(process: subprocess.Popen[bytes], reached: Callable[[], bool], log: Path) -> None:
    """SIGKILL the launcher, a moment after something has been reached; nothing outlives it."""
    wait_until(process, reached, log)
    time.sleep(0.2)
    process.kill()
    process.wait()
    assert_alone(process)


def wait_until(process: subprocess.Popen[bytes] | Fork, reached: Callable[[], bool], log: Path) -> None:
    """Wait for something to be reached by a run that goes on meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_alone(process: subprocess.Popen[bytes]) -> None:
    """Nothing is left of a launch that has ended, or soon will not be."""
    deadline = time.monotonic() + ORPHANS_S
    while left := members(process):
        if time.monotonic() > deadline:
            signal_all(process, signal.SIGKILL)
            raise AssertionError(f"the launcher's death left processes behind: {left}")
        time.sleep(0.1)


def members(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a launch that are alive, its launcher among them; what has ended and waits to be reaped is
    not."""
    assert isinstance(process.args, list)
    mark = f"{MARK}={process.args[process.args.index('--main_process_port') + 1]}".encode()
    alive = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes().split(b"\0") and is_alive(int(environment.parent.name)):
                alive.append(int(environment.parent.name))
    return alive


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to every process of a launch."""
    for pid in members(process):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int, within_s: float) -> bool:
    """Whether a process has ended within so many seconds."""
    deadline = time.monotonic() + within_s
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
