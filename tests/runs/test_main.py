"""The commands are imported when they are called, and not before."""

import subprocess
import sys
from importlib import import_module

import pytest
from typer.testing import CliRunner

from finetune.runs.__main__ import COMMANDS, app
from tests.test_layers import HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there(name: str) -> None:
    module, _, function = COMMANDS[name][0].rpartition(".")
    assert callable(getattr(import_module(f"finetune.runs.{module}"), function))
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_the_list_of_commands_names_all_and_imports_none() -> None:
    called = "app(['--help'], standalone_mode=False)"
    program = f"import sys; from finetune.runs.__main__ import app; {called}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *shown, modules = done.stdout.splitlines()
    assert all(any(f" {name} " in line for line in shown) for name in COMMANDS)
    assert not {module.split(".")[0] for module in modules.split()} & {*HEAVY, "omegaconf"}


def test_an_unknown_command_is_told_what_it_may_mean() -> None:
    result = CliRunner().invoke(app, ["statsu"])
    assert result.exit_code == 2
    assert "status" in result.output
