"""Processes that cost one import for all: a server imports what trains, and each process is forked from it.

Run as a module it is the server: it reads from its standard input which processes to start, and how they have ended.
Its processes share one seed of hashes, and have no launcher: what is about launchers, their orphans or the start itself
starts the real command, by `tests.processes.launch`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetune.entry import ENVIRONMENT as QUIET

IMPORTS = ("finetune.recipes", "finetune.train")
DEADLINE_S = 300
LEAVE_S = 15
"""How long the other ranks may take once the first has ended."""


class Fork:
    """A process of the server's; made by `Forks.start`."""

    def __init__(self, forks: "Forks", pid: int) -> None:
        self._forks, self.pid = forks, pid

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that it has died of; None as long as it runs."""
        code: int | None = self._forks.asked({"pid": self.pid})
        return code

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Its exit code; it is killed when it has not ended in time."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        return code


class Forks:
    """The server, as a test sees it."""

    def __init__(self) -> None:
        environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.forks"]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(
        self, log: Path, module: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
    ) -> Fork:
        """Start `python -m module`; what it says is added to a file.

        Args:
            environment: on top of this process's own.
        """
        log.parent.mkdir(exist_ok=True)
        job = {
            "module": module,
            "arguments": arguments,
            "log": str(log),
            "folder": str(Path.cwd()),
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
        }
        return Fork(self, self.asked(job))

    def asked(self, request: dict[str, Any]) -> Any:
        """What the server answers."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server has ended"
        return json.loads(answer)


@cache
def server() -> Forks:
    """The server of this process's tests, which ends with them."""
    return Forks()


def begun(log: Path, module: str, *arguments: str, processes: int = 1) -> list[Fork]:
    """Start a module as so many ranks, or alone as without a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [{**world, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)] if processes > 1 else [{}]
    return [server().start(log, module, *arguments, environment=place) for place in places]


def ended(log: Path, module: str, *arguments: str, processes: int = 1) -> int:
    """Run a module as so many ranks, or alone, to its end; the exit code of the first."""
    first, *others = begun(log, module, *arguments, processes=processes)
    code = first.wait()
    for other in others:
        other.wait(LEAVE_S)
    return code


def serve() -> dict[str, Any] | None:
    """Start one process after the other until there are no more; in each of them, what it is to run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what imports have to say
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # so that collections leave alone what the processes share
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
        print(json.dumps(answer), file=answers, flush=True)
    return None


def become(job: dict[str, Any]) -> None:
    """Be the process that a job describes, to its end."""
    os.setsid()
    with Path(job["log"]).open("ab") as log, Path(os.devnull).open("rb") as nothing:
        for file, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv[1:] = job["arguments"]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    job = serve()
    if job is not None:
        become(job)
