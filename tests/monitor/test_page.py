"""The page beside a run."""

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.monitor.config import MonitorConfig
from finetune.monitor.page import PageBeside
from tests.runs.pretend import pretend_run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except ConnectionError:
        return False


def test_it_serves_until_it_is_closed(tmp_path: Path) -> None:
    run, port = pretend_run(tmp_path / "run", 60, heartbeat=time.time() + 3600), free_port()
    page = PageBeside(run, port)
    while not answers(port):
        assert page.poll() is None
        time.sleep(0.1)
    page.close()
    assert not answers(port)


def test_a_port_that_is_taken_is_told_once(tmp_path: Path) -> None:
    run = pretend_run(tmp_path / "run", 60)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = PageBeside(run, taken.getsockname()[1])
        while (reason := page.poll()) is None:
            time.sleep(0.1)
        assert "cannot be listened on" in reason
        assert page.poll() is None
        page.close()


def test_it_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    run, port = pretend_run(tmp_path / "run", 60, heartbeat=time.time() + 3600), free_port()
    program = f"""import os, time
from pathlib import Path
from finetune.monitor.page import PageBeside
page = PageBeside(Path({str(run)!r}), {port})
input()
os.kill(os.getpid(), 9)"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, env={**os.environ, "RANK": "0"}
    ) as process:
        while not answers(port):
            time.sleep(0.1)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait() == -9
    while answers(port):
        time.sleep(0.1)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(UserError, match=r"monitor\.serve_port"):
        MonitorConfig(serve_port=port)
