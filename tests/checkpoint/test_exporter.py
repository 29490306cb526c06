"""Exports beside a run: with a stand-in for the command, and with the command itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import beside
from finetune.checkpoint.export_config import ExportConfig
from finetune.checkpoint.exporter import BackgroundExport, Exported
from tests.runs.saved import first_weights, recipe, shared_out, write_checkpoint, write_recipe

STAND_IN = """#!/bin/sh
# -m finetune.runs.beside PID export RUN OUT --step N …
echo "$@" > "$5/arguments"; env > "$5/environment"
if [ -e "$5/wait" ]; then sleep 60; fi
if [ -e "$5/fail" ]; then echo half > "$5/export/.$(basename "$6").tmp"; echo some; echo "error: a reason"; exit 2; fi
mkdir -p "$5/export"; echo "$8" > "$6"; echo x > "${6%.safetensors}.yaml"
"""


def finished(exports: BackgroundExport) -> list[Exported]:
    """What has ended once nothing goes on any more."""
    assert exports.wait(120.0)
    return exports.poll()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose exports are made by a stand-in for Python."""
    command = tmp_path / "python"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    monkeypatch.setattr(beside.sys, "executable", str(command))
    (tmp_path / "run" / "export").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def begin(run: Path) -> Iterator[Any]:
    """BackgroundExport of the run by its settings, closed at the end."""
    made: list[BackgroundExport] = []

    def begin(**settings: Any) -> BackgroundExport:
        made.append(BackgroundExport(run, ExportConfig(**{"every_steps": 5, **settings})))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "export").iterdir())


def test_it_is_due_every_so_many_steps(begin: Any) -> None:
    assert [step for step in range(1, 16) if begin().due(step)] == [5, 10, 15]
    assert not any(begin(every_steps=0).due(step) for step in range(20))


def test_the_command_exports_the_step_as_the_recipe_says(run: Path, begin: Any) -> None:
    exports = begin(format="single_file", dtype="bf16")
    assert exports.start(10)
    (ended,) = finished(exports)
    assert (ended.step, ended.path, ended.error) == (10, run / "export" / "run-step-00000010.safetensors", None)
    told = (run / "arguments").read_text().split()
    assert told == [
        *("-m", "finetune.runs.beside", str(os.getpid()), "export", str(run), str(ended.path)),
        *("--step", "10", "--format", "single_file", "--dtype", "bf16"),
    ]
    assert exports.poll() == []


def test_one_at_a_time_and_nobody_waits(run: Path, begin: Any) -> None:
    (run / "wait").touch()
    exports = begin()
    began = time.monotonic()
    assert exports.step is None
    assert exports.start(5)
    assert not exports.start(10)
    assert exports.poll() == []
    assert exports.step == 5
    assert time.monotonic() - began < 5
    exports.close()
    (ended,) = exports.poll()
    assert (ended.step, ended.error) == (5, "it was ended by signal 9")
    assert exports.step is None


def test_a_failure_is_told_and_not_raised(run: Path, begin: Any) -> None:
    exports = begin()
    (run / "fail").touch()
    assert exports.start(5)
    (ended,) = finished(exports)
    assert (ended.step, ended.error) == (5, "a reason")
    assert names(run) == []  # what was half-written is gone
    (run / "fail").unlink()
    assert exports.start(10)
    assert finished(exports)[0].error is None


def test_a_command_that_cannot_be_started_is_told_too(run: Path, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.sys, "executable", str(run / "nothing"))
    exports = begin()
    assert not exports.start(5)
    (ended,) = exports.poll()
    assert "No such file" in str(ended.error)


@pytest.mark.parametrize(("keep", "left"), [(0, [5, 10, 15, 20]), (1, [20]), (3, [10, 15, 20])])
def test_the_newest_are_kept(run: Path, begin: Any, keep: int, left: list[int]) -> None:
    others = ["run-final.safetensors", "other-step-00000001.safetensors", "run-step-00000001"]
    for name in others:
        (run / "export" / name).touch()
    exports = begin(keep=keep)
    for step in (5, 10, 15, 20):
        assert exports.start(step)
        finished(exports)
    files = [f"run-step-{step:08d}{suffix}" for step in left for suffix in (".safetensors", ".yaml")]
    assert names(run) == sorted([*others, *files])


def test_what_a_killed_run_left_half_written_is_removed(run: Path, begin: Any) -> None:
    for name in (".run-step-00000005.safetensors.tmp", ".mine.tmp", "run-step-00000005.safetensors"):
        (run / "export" / name).touch()
    begin()
    assert names(run) == [".mine.tmp", "run-step-00000005.safetensors"]


def test_it_is_no_rank_and_takes_one_thread_and_no_gpu(run: Path, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    exports = begin()
    exports.start(5)
    finished(exports)
    told = dict(line.split("=", 1) for line in (run / "environment").read_text().splitlines() if "=" in line)
    assert not {name for name in told if name.startswith(("RANK", "WORLD", "MASTER", "TORCHELASTIC", "ACCELERATE"))}
    assert (told["OMP_NUM_THREADS"], told["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert told["HF_HOME"] == "/somewhere"


def test_the_trainer_imports_nothing_heavy_for_it() -> None:
    program = "import sys, finetune.checkpoint.exporter; print({'torch', 'diffusers', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_command_itself(tiny_sd15: Path, tmp_path: Path) -> None:
    config = recipe(tiny_sd15)
    write_recipe(tmp_path / "run", config)
    write_checkpoint(tmp_path / "run", 5, shared_out(first_weights(config), {}, 2))
    exports = BackgroundExport(tmp_path / "run", ExportConfig(every_steps=5))
    assert exports.start(5)
    (ended,) = finished(exports)
    assert ended.error is None
    assert load_file(ended.path)["model.diffusion_model.out.2.bias"].dtype == torch.float16
    assert ended.path.with_suffix(".yaml").is_file()
    assert exports.start(10)
    (ended,) = finished(exports)
    assert str(ended.error).endswith("holds no checkpoint of step 10: there are those of 5")


PARENT = """
import sys, time
from pathlib import Path
from finetune.checkpoint.export_config import ExportConfig
from finetune.checkpoint.exporter import BackgroundExport
exports = BackgroundExport(Path(sys.argv[1]), ExportConfig(every_steps=1))
assert exports.start(1)
print(exports._running.process._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    checkpoints = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoints.mkdir(parents=True)
    os.mkfifo(checkpoints / "manifest.json")  # where the command waits for ever
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 120
    while "nice" not in state(child):  # imports take their time
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def state(pid: int) -> str:
    """Whether a process has lowered its priority."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "nice" if int(fields[16]) == 19 else ""
