"""Whether a run's checkpoints are whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from finetune.errors import UserError
from finetune.runs.__main__ import app
from tests.runs.saved import shared_out, write_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints of two ranks."""
    for step in (5, 10):
        write_checkpoint(tmp_path / "run", step, shared_out({"unet.a": torch.arange(9.0) * step}, {}, 2))
    return tmp_path / "run"


def verified(run: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["verify", str(run), *options])


def as_json(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verified(run, "--json").stdout)
    return found


def test_whole_checkpoints(run: Path) -> None:
    done = verified(run)
    assert done.exit_code == 0
    assert done.output.count("│ whole") == 2
    sizes = [
        sum(path.stat().st_size for path in folder.glob("rank-*"))
        for folder in sorted((run / "checkpoints").glob("step-*"))
    ]
    assert as_json(run) == {
        "checkpoints": [
            {"name": f"step-{step:08d}", "ranks": 2, "bytes": size, "damage": None}
            for step, size in zip((5, 10), sizes, strict=True)
        ],
        "set_aside": [],
    }


def flip_a_bit(folder: Path) -> None:
    path = folder / "rank-00001.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(folder: Path) -> None:
    path = folder / "rank-00000.pt"
    path.write_bytes(path.read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "rank-00001.pt").unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


def foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "package"}')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip_a_bit, "rank-00001.pt"),
        (cut_off, "rank-00000.pt"),
        (remove, "rank-00001.pt is missing"),
        (empty_the_manifest, "manifest.json cannot be read"),
        (foreign_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_named_and_the_others_are_looked_at(
    run: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(run / "checkpoints" / "step-00000005")
    assert verified(run).exit_code == 1
    first, second = as_json(run)["checkpoints"]
    assert first["damage"].startswith(said)
    assert second["damage"] is None


def test_what_was_set_aside_or_never_finished_is_listed_and_does_not_count(run: Path) -> None:
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000010", folder / "step-00000010.damaged-1")
    remove(folder / "step-00000010.damaged-1")
    (folder / "step-00000015.tmp").mkdir()
    done = verified(run)
    assert done.exit_code == 0
    assert "step-00000010.damaged-1 is set aside" in done.output
    assert "step-00000015.tmp is unfinished" in done.output
    assert as_json(run)["set_aside"] == ["step-00000010.damaged-1", "step-00000015.tmp"]


def test_a_folder_that_is_no_run_s_is_refused(tmp_path: Path) -> None:
    done = verified(tmp_path)
    assert isinstance(done.exception, UserError)
    assert "is not a run's folder with checkpoints" in str(done.exception)
