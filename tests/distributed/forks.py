"""Groups of processes that cost one import for all: a server imports the scripts and forks the ranks of each group.

Run as a script it is the server: it reads jobs from its standard input, a line each, and tells when one is done.
"""

import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 240


class Forks:
    """The server, as a test sees it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, script: str, world: int, *arguments: str) -> None:
        """Run the `main` of a script of this folder in `world` processes; its last argument but two is the file of
        results that the first rank leaves, by which it is judged and not by exit codes: gloo's threads sometimes abort
        after all is done."""
        log = Path(arguments[-2]) / "log"
        job = {"script": script, "world": world, "arguments": arguments, "log": str(log)}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        assert "done\n" in self._server.stdout, "the server has ended"  # after what imports have to say
        assert Path(arguments[-3]).exists(), log.read_text()[-4000:]

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()


def serve() -> None:
    """Do one job after the other until there are no more."""
    for line in sys.stdin:
        job = json.loads(line)
        importlib.import_module(job["script"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        ranks = [fork.Process(target=rank, args=(number, port, job), daemon=True) for number in range(job["world"])]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(TIMEOUT_S)
            process.kill()
        print("done", flush=True)


def rank(number: int, port: int, job: dict[str, Any]) -> None:
    """One rank's script; alone it is started as without a launcher."""
    with Path(job["log"]).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if job["world"] > 1:
        places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": job["world"], "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in places.items()}, MASTER_ADDR="127.0.0.1")
    sys.argv[1:] = job["arguments"]
    importlib.import_module(job["script"]).main()


if __name__ == "__main__":
    serve()
