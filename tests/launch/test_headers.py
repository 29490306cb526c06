"""What all files here have in common: they say how they are started, and are well-formed scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.recipes import read_recipe
from tests.launch.conftest import LAUNCH

FILES = sorted(LAUNCH.iterdir())
SCRIPTS = [path for path in FILES if path.suffix in {".sh", ".sbatch"}]


def header(path: Path) -> str:
    """The comment at the top of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end] if not line.startswith(("#!", "#SBATCH")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_says_how_it_is_started(path: Path) -> None:
    commands = [line for line in header(path).replace("\\\n", "").splitlines() if f"launch/{path.name}" in line]
    assert commands
    assert all(line.split()[0] in {"accelerate", "kubectl", "sbatch"} or "=" in line.split()[0] for line in commands)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_the_recipe_that_it_is_started_with_exists(path: Path) -> None:
    command = next(line for line in header(path).splitlines() if "conf=" in line)
    read_recipe(command[command.index("conf=") :].split())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_free_of_faults(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
