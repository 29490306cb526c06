"""Images and the compose file, by their linters and by what has to hold in them; nothing is built."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions(path: Path) -> list[str]:
    """A Dockerfile's instructions, each on one line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def check(tool: str, *arguments: str) -> None:
    """A tool that lies beside Python finds nothing."""
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_for_training_and_one_for_data() -> None:
    assert [path.stem for path in IMAGES] == ["data", "train"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_the_linter_finds_nothing(path: Path) -> None:
    check("hadolint", str(path))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_it_is_pinned_and_without_root(path: Path) -> None:
    steps = instructions(path)
    bases = [step.split()[1] for step in steps if step.startswith("FROM")]
    assert all(base.split(":")[1].count(".") == 2 for base in bases)
    users = [step.split()[1] for step in steps if step.startswith("USER")]
    assert users == ["1000:1000"]
    assert max(i for i, step in enumerate(steps) if step.startswith("RUN")) < steps.index("USER 1000:1000")
    installs = [step for step in steps if "pip install" in step]
    assert installs
    assert all("--constraint /constraints.txt" in step for step in installs)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_what_it_is_built_from_is_not_ignored(path: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    let_in = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    project = {"pyproject.toml", "README.md", "LICENSE", "finetune", "data_tools", "conf"}  # what a wheel is made of
    assert project | {"constraints.txt"} == let_in


def test_constraints_allow_both_builds_of_torch() -> None:
    (pin,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert "+" not in pin  # 2.13.0+cpu is not on PyPI, and 2.13.0 would not satisfy it


def test_a_signal_reaches_the_launcher_and_it_has_time_to_save() -> None:
    steps = instructions(DOCKER / "train.Dockerfile")
    assert 'ENTRYPOINT ["tini", "--"]' in steps
    (settings,) = [step for step in steps if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in step]
    grace_s = int(settings.split("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[1].split()[0])
    assert grace_s < 60 * int(SERVICES["train"]["stop_grace_period"].removesuffix("m"))


@pytest.mark.parametrize(
    ("run", "code"), [("runs/running", 0), ("runs/failed", 1), ("runs/none", 1), (None, 2)], ids=str
)
def test_the_health_check_asks_the_run(run: str | None, code: int, tmp_path: Path) -> None:
    for state in ("running", "failed"):
        (tmp_path / "runs" / state).mkdir(parents=True)
        status = {"name": state, "state": state, "step": 1, "total_steps": 2, "host": "box", "pid": 1}
        beat = {"heartbeat": time.time(), "heartbeat_s": 5.0, "started": time.time()}
        (tmp_path / "runs" / state / "status.json").write_text(json.dumps({**status, **beat}))
    (step,) = [each for each in instructions(DOCKER / "train.Dockerfile") if each.startswith("HEALTHCHECK")]
    environment = {name: value for name, value in os.environ.items() if name != "RUN"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    if run:
        environment["RUN"] = run
    command = json.loads(step[step.index("[") :])
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("give the run as RUN=runs/NAME" in done.stderr) == (run is None)


def test_the_compose_file_is_of_its_specification() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml"))


def test_compose_trains_on_gpus_and_shows_nothing_to_the_network() -> None:
    train = SERVICES["train"]
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(volume.endswith("/data:ro") for volume in SERVICES["tensorboard"]["volumes"])


def test_compose_starts_what_can_be_started() -> None:
    words = SERVICES["train"]["command"].split()
    assert words[:3] == ["python", "-m", "finetune.launch"]
    launched = parse_args(words[3:])
    assert (launched.module, launched.training_script) == (True, "finetune")
    assert launched.standalone
