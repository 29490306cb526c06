"""`python -m data_tools stats`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.__main__ import app
from tests.data_tools.stats.test_buckets import recipe


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "data_tools", "stats", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_command_without_prompts_needs_no_tokenizer(
    odd_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*recipe(f"data.shards={odd_shards}", "model.path=/nowhere"), "--prompts", "0"]
    done = run(*arguments, "--json", "--out", "figures", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["samples"], told["prompts"]) == (5, None)
    assert len(told["factor_edges"]) == len(told["factors"]) + 1
    monkeypatch.chdir(tmp_path)
    plain = CliRunner().invoke(app, ["stats", *arguments, "--out", "figures"])
    assert "48×80" in plain.stdout
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["stats.png"]


def test_the_command_with_prompts(
    odd_shards: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*recipe(f"data.shards={odd_shards}", f"model.path={tiny_model}", "captions.drop=0"), "--draws", "2"]
    done = run(*arguments, "--prompts", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["samples"] == 5
    prompts = told["prompts"]
    assert (prompts["samples"], prompts["draws"]) == (3, 2)
    assert prompts["sources"][0]["in_effect"] == pytest.approx({"tags": 0.2, "caption": 0.2, "missing": 0.6})
    assert sum(prompts["forms"].values()) == pytest.approx(1.0)
    assert "3/3" in done.stderr
    monkeypatch.chdir(tmp_path)
    plain = CliRunner().invoke(app, ["stats", *arguments, "--out", "figures"])
    assert "prompts of 5 samples, 2 of each" in plain.stdout
    assert "dog" in plain.stdout
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"stats.png", "prompts.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe"),
        (["conf=demo", "data.nothing=1"], "there is no setting data.nothing"),
        (["conf=demo", "data.shards=/nowhere"], "there is no index /nowhere/index.arrow"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, "--prompts", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
