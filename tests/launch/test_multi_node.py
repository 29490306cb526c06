"""The script for several machines: two of them, which are two launchers here, meet on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune.entry import PREEMPTED
from finetune.monitor.files import read_lines
from tests.launch.conftest import LAUNCH, Start, marked
from tests.processes import DEADLINE_S, wait_until

SCRIPT = LAUNCH / "multi_node.sh"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an environment to start from, as both machines see it."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    activate = f'PATH="{Path(sys.executable).parent}:$PATH"\n'
    (tmp_path / ".venv" / "bin" / "activate").write_text(activate)
    return tmp_path


class Nodes:
    """Two machines of a process each."""

    def __init__(self, start: Start, site: Path, recipe: list[str], **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        setting = {"HEAD_NODE": "127.0.0.1", "NODES": "2", "PROCESSES": "1", "PORT": port, **environment}
        self.logs = [site / f"node-{i}" for i in range(2)]
        self.run = site / "runs" / "demo"
        command = [str(SCRIPT), *recipe, "strategy=ddp"]
        self.launchers = [start(command, log, setting) for log in self.logs]

    def until_step(self, step: int) -> None:
        """Wait until so many steps are done."""
        path = self.run / "status.json"
        wait_until(
            self.launchers[0], lambda: path.exists() and json.loads(path.read_text())["step"] >= step, self.logs[0]
        )

    def end(self) -> list[int]:
        """The exit codes of both launchers."""
        return [launcher.wait(DEADLINE_S) for launcher in self.launchers]

    @property
    def said(self) -> str:
        """What both have said."""
        return "\n".join(log.read_text()[-4000:] for log in self.logs)

    @property
    def ends(self) -> list[str]:
        """How each start of the run has ended."""
        return [row["state"] for row in read_lines(self.run / "starts.jsonl") if row["kind"] == "ended"]


@pytest.mark.slow
def test_a_worker_that_is_killed_on_one_machine_is_started_again_on_both(
    start: Start, site: Path, recipe: list[str]
) -> None:
    # One restart is enough: those that are started again find each other, and not the addresses of the dead.
    nodes = Nodes(start, site, [*recipe, "phases=[{until: 20 steps}]"], MAX_RESTARTS="1")
    nodes.until_step(4)
    (worker,) = marked(str(site), "RANK=1")
    os.kill(worker, signal.SIGKILL)
    assert nodes.end() == [0, 0], nodes.said
    assert nodes.ends[1:] == ["finished"]
    assert [line["step"] for line in read_lines(nodes.run / "metrics.jsonl")] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.faults
def test_both_are_asked_to_stop(start: Start, site: Path, recipe: list[str]) -> None:
    nodes = Nodes(start, site, [*recipe, "phases=[{until: 2000 steps}]"])
    nodes.until_step(2)
    for launcher in nodes.launchers:
        launcher.send_signal(signal.SIGTERM)
    assert nodes.end() == [PREEMPTED, PREEMPTED], nodes.said
    assert nodes.ends == ["preempted"]
    assert marked(str(site)) == []


@pytest.mark.parametrize("given", [{"NODES": "2"}, {"HEAD_NODE": "node1"}])
def test_what_is_not_given_is_asked_for(site: Path, given: Mapping[str, str]) -> None:
    (missing,) = {"HEAD_NODE", "NODES"} - set(given)
    environment = {**os.environ, **given}
    environment.pop(missing, None)
    done = subprocess.run([str(SCRIPT)], cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{missing}: give the " in done.stderr
