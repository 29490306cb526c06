"""Comparing two checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from omegaconf import OmegaConf
from torch import Tensor
from typer.testing import CliRunner

from finetune.errors import UserError
from finetune.runs.__main__ import app
from tests.runs.saved import META, shared_out, write_checkpoint

A = {"unet.a": torch.tensor([3.0, 4.0]), "unet.b": torch.ones(100), "text_encoder.c": torch.full((3, 3), 2.0)}


def write_run(run: Path, weights: dict[str, Tensor], *, world: int = 2, step: int = 5, **meta: Any) -> Path:
    run.mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}}), run / "config.yaml")
    return write_checkpoint(run, step, shared_out(weights, {}, world), {**META, **meta})


def invoked(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


def facts(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoked(*arguments, "--json").stdout)
    return found


def test_the_same_weights_of_other_worlds_are_identical(tmp_path: Path) -> None:
    write_run(tmp_path / "a", A, world=1)
    write_run(tmp_path / "b", A, world=3)
    done = invoked(tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 0
    assert "3 of 3 tensors are identical" in done.output
    found = facts(tmp_path / "a", tmp_path / "b")
    assert found["identical"]
    assert found["parameters"]["worst"] == {}
    assert [position["ranks"] for position in found["position"]] == [1, 3]
    assert found["recipe"] == found["journal"] == found["identity"] == found["packages"] == {}


def test_distances_are_what_they_are_by_definition(tmp_path: Path) -> None:
    other = {**A, "unet.a": torch.tensor([3.0, 4.5]), "unet.b": A["unet.b"] + 0.5}
    write_run(tmp_path / "a", A)
    write_run(tmp_path / "b", other)
    assert invoked(tmp_path / "a", tmp_path / "b").exit_code == 1
    found = facts(tmp_path / "a", tmp_path / "b")
    assert not found["identical"]
    assert (found["parameters"]["tensors"], found["parameters"]["identical"]) == (3, 1)
    worst = found["parameters"]["worst"]
    assert list(worst) == ["unet.b", "unet.a"]
    assert worst["unet.a"] == {"elements": 2, "identical": False, "relative_l2": pytest.approx(0.1), "max_abs": 0.5}
    assert worst["unet.b"]["relative_l2"] == pytest.approx(0.5)
    unet, text = (found["parameters"]["parts"][part] for part in ("unet", "text_encoder"))
    assert unet["relative_l2"] == pytest.approx(math.sqrt((0.25 + 25.0) / (25.0 + 100.0)))
    assert text == {"elements": 9, "identical": True, "relative_l2": 0.0, "max_abs": 0.0}
    assert list(facts(tmp_path / "a", tmp_path / "b", "--worst", "1")["parameters"]["worst"]) == ["unet.b"]


@pytest.mark.parametrize(("value", "largest"), [(math.nan, None), (math.inf, None), (-0.0, 0.0)])
def test_values_that_are_not_finite_and_signs_of_zero_are_seen(
    tmp_path: Path, value: float, largest: float | None
) -> None:
    zeros = {"unet.a": torch.zeros(3), "unet.b": torch.ones(2)}
    write_run(tmp_path / "a", zeros)
    write_run(tmp_path / "b", {**zeros, "unet.a": torch.tensor([0.0, value, 0.0])})
    found = facts(tmp_path / "a", tmp_path / "b")
    assert not found["identical"]
    assert found["parameters"]["worst"]["unet.a"]["max_abs"] == largest
    assert found["parameters"]["parts"]["unet"]["max_abs"] == largest
    assert invoked(tmp_path / "a", tmp_path / "b").exit_code == 1


def test_averages_are_compared_too(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.5)):
        (tmp_path / name).mkdir()
        states = shared_out(A, {"unet.a": A["unet.a"] * factor}, 2)
        write_checkpoint(tmp_path / name, 5, states)
    found = facts(tmp_path / "a", tmp_path / "b")
    assert not found["identical"]
    assert found["parameters"]["identical"] == 3
    assert found["averages"]["worst"]["unet.a"]["relative_l2"] == pytest.approx(0.5)
    assert found["averages"]["tensors"] == 1
    assert "unet, average" in invoked(tmp_path / "a", tmp_path / "b").output


def test_parameters_that_one_alone_has_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", A)
    write_run(tmp_path / "b", {"unet.a": A["unet.a"], "unet.b": torch.ones(99), "unet.d": torch.ones(1)})
    found = facts(tmp_path / "a", tmp_path / "b")
    assert (found["only_in_a"], found["only_in_b"]) == (["text_encoder.c"], ["unet.d"])
    assert found["of_other_sizes"] == {"unet.b": [100, 99]}
    assert not found["identical"]
    assert found["parameters"]["tensors"] == 1
    assert "only in a" in invoked(tmp_path / "a", tmp_path / "b").output


def test_position_recipe_journal_and_versions(tmp_path: Path) -> None:
    for name, step, lr in (("a", 5, 0.1), ("b", 10, 0.2)):
        journal = {"editions": [{"epoch": 0}], "exclusions": [] if name == "a" else [{"step": 7}]}
        packages = {"torch": "2.13", "numpy": "2.2" if name == "a" else "2.3"}
        config = {"optim": {"lr": lr, "betas": [0.9, 0.99]}}
        write_run(tmp_path / name, A, step=step, journal=journal, packages=packages, config=config, updates=step - 1)
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": {step}, "epoch": {step / 100}}}\n')
    found = facts(tmp_path / "a", tmp_path / "b")
    kept = ("step", "samples", "epoch", "updates")
    assert [[position[key] for key in kept] for position in found["position"]] == [[5, 80, 0.05, 4], [10, 160, 0.1, 9]]
    assert found["recipe"] == {"optim.lr": [0.1, 0.2]}
    assert found["journal"] == {"exclusions": [[], None], "exclusions[0].step": [None, 7]}
    assert found["packages"] == {"numpy": ["2.2", "2.3"]}
    assert found["optimizer"] == ["adam", "adam"]
    output = invoked(tmp_path / "a", tmp_path / "b").output
    assert "recipe optim.lr" in output
    assert "packages numpy" in output


def test_checkpoints_are_named_by_run_step_or_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "run@home", A, step=5)
    folder = write_run(tmp_path / "run@home", {**A, "unet.a": torch.zeros(2)}, step=10)
    run = tmp_path / "run@home"
    assert [p["step"] for p in facts(run, f"{run}@5")["position"]] == [10, 5]
    assert [p["step"] for p in facts(folder, f"{run}@10")["position"]] == [10, 10]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothing", "holds no finished checkpoint"),
        ("run@6", "holds no checkpoint of step 6: there are those of 5"),
        ("run/checkpoints/step-00000005", "that cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    folder = write_run(tmp_path / "run", A)
    if "manifest" not in complaint and name.endswith("5"):
        (folder / "manifest.json").write_text("{")
    done = invoked(tmp_path / name, tmp_path / name)
    assert isinstance(done.exception, UserError)
    assert complaint in str(done.exception)
