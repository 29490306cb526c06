"""The SLURM script, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from torch.distributed.run import parse_args

from finetune.monitor.status import StatusFile
from finetune.runs.status import EXIT_CODES

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
SRUN = """#!/usr/bin/env bash
# The tasks, which end when they are asked to stop, or at once.
trap 'exit "$CODE"' TERM
printf '%s\\0' "$@" > srun.arguments
echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > grace
echo $$ > srun.pid.tmp && mv srun.pid.tmp srun.pid
if [[ $WAITS == no ]]; then exit "$CODE"; fi
while :; do sleep 0.05; done
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; else echo "$@" >> scontrol.calls; fi
"""
PYTHON = """#!/usr/bin/env bash
if [[ $* != '-m finetune.runs status runs/fox' ]]; then exit 99; fi
exit "$HEALTH"
"""
ELEMENT = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "1"}
SCANCEL = """#!/usr/bin/env bash
echo "$@" >> scancel.calls
kill -TERM "$(cat srun.pid)"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder to submit from, whose environment holds the stand-ins."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL), ("python", PYTHON)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    return tmp_path


def submit(
    site: Path, state: str, code: int, *, out_of_time: bool, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Run the script until it ends; `out_of_time` tells it so and has the run wait for that."""
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    test = {"HEALTH": str(EXIT_CODES[state]), "CODE": str(code), "WAITS": "yes" if out_of_time else "no"}
    command = ["bash", str(SCRIPT), "conf=hyperfusion", "data.shards=/a folder", "run.name=fox"]
    job = subprocess.Popen(
        command,
        cwd=site,
        env={**os.environ, **slurm, **test, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if out_of_time:
        deadline = time.monotonic() + 30
        while not (site / "srun.pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        job.send_signal(signal.SIGUSR1)
    job.wait(60)
    return job


def arguments_of(site: Path) -> list[str]:
    """What srun was given."""
    return (site / "srun.arguments").read_text().split("\0")[:-1]


def requeued(site: Path) -> bool:
    return (site / "scontrol.calls").exists() and (site / "scontrol.calls").read_text() == "requeue 42\n"


def test_a_run_that_saves_before_its_time_is_up_queues_again(site: Path) -> None:
    job = submit(site, "preempted", 1, out_of_time=True)
    assert requeued(site)
    assert job.returncode == 0
    assert (site / "scancel.calls").read_text() == "--signal=TERM 42\n"
    assert (site / "grace").read_text() == "240\n"
    arguments = arguments_of(site)
    assert arguments[-3:] == ["conf=hyperfusion", "data.shards=/a folder", "run.name=fox"]


@pytest.mark.parametrize("state", ["healthy", "stale", "paused"])
def test_a_run_that_was_killed_since_it_was_too_slow_to_save_queues_again(site: Path, state: str) -> None:
    submit(site, state, 1, out_of_time=True)
    assert requeued(site)


@pytest.mark.parametrize(
    ("state", "code", "out_of_time"),
    [
        ("finished", 0, False),
        ("finished", 0, True),  # in the time that was left
        ("failed", 1, False),
        ("failed", 1, True),
        ("stopped", 1, True),
        ("preempted", 1, False),  # the user has stopped it
    ],
)
def test_any_other_end_is_the_end(site: Path, state: str, code: int, out_of_time: bool) -> None:
    job = submit(site, state, code, out_of_time=out_of_time)
    assert not (site / "scontrol.calls").exists()
    assert job.returncode == code


def test_an_element_of_an_array_leaves_the_rest_to_the_next(site: Path) -> None:
    job = submit(site, "preempted", 75, out_of_time=True, environment=ELEMENT)
    assert not (site / "scontrol.calls").exists()
    assert job.returncode == 75


@pytest.mark.parametrize(("state", "starts"), [("finished", False), ("preempted", True), ("running", True)])
def test_the_elements_of_an_array_end_at_once_when_the_run_is_finished(site: Path, state: str, starts: bool) -> None:
    (site / "runs" / "fox").mkdir(parents=True)
    StatusFile(site / "runs" / "fox" / "status.json", 5.0).close(state)
    job = submit(site, "finished", 0, out_of_time=False, environment=ELEMENT)
    assert job.returncode == 0
    assert (site / "srun.pid").exists() == starts
    assert job.stdout is not None
    assert ("runs/fox is finished" in job.stdout.read()) != starts


def test_nodes_meet_at_the_first_of_them(site: Path) -> None:
    submit(site, "finished", 0, out_of_time=False, environment={"SLURM_GPUS_ON_NODE": "4"})
    _, bash, flag, script, name, *recipe = arguments_of(site)
    assert (bash, flag, name) == ("bash", "-c", "launch")
    # What the task's shell makes of it, with an echo in the place of the command.
    environment = {**os.environ, "SLURM_NNODES": "2", "SLURM_JOB_ID": "42", "head": "node1", "per_node": "4"}
    shown = subprocess.run(
        ["bash", "-c", script.replace("exec python", "printf '%s\\n'"), name, *recipe],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert shown[:2] == ["-m", "finetune.launch"]
    launched = parse_args(shown[2:])
    assert (launched.nnodes, launched.nproc_per_node, launched.rdzv_endpoint) == ("2", "4", "node1:29500")
    assert (launched.rdzv_id, launched.rdzv_backend, launched.max_restarts) == ("42", "c10d", 3)
    assert (launched.module, launched.training_script, launched.training_script_args) == (True, "finetune", recipe)


def test_a_run_without_a_name_is_refused(site: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "conf=demo"], cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give run.name=NAME" in done.stderr
