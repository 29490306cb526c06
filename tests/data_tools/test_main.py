"""The commands that need the model's libraries are imported when they are called."""

from importlib import import_module

import pytest
from typer.testing import CliRunner

from data_tools.__main__ import LATER, app
from tests.test_layers import imported_by


@pytest.mark.parametrize("name", LATER)
def test_each_command_is_there(name: str) -> None:
    module, _, function = LATER[name][0].rpartition(".")
    command = getattr(import_module(f"data_tools.{module}"), function)
    told = CliRunner().invoke(app, [name, "--help"])
    assert told.exit_code == 0
    assert " ".join(command.__doc__.split()[:4]) in told.output


def test_the_list_names_these_beside_the_others() -> None:
    told = CliRunner().invoke(app, ["--help"]).output
    assert all(f" {name} " in told for name in (*LATER, "build", "index", "demo"))


def test_packing_needs_no_model() -> None:
    assert not imported_by("data_tools.__main__") & {"diffusers", "transformers", "accelerate", "deepspeed"}
