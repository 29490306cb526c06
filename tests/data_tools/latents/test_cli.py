"""The command, and those beside it for recipes with latents."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.__main__ import app
from finetune.errors import UserError

SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]
BATCH = ["train.micro_batch=4", "train.global_batch=8", "data.window_shards=1", "data.workers=0"]


def said(command: str, shards: Path, *more: str) -> str:
    arguments = [command, "conf=demo", f"data.shards={shards}", *SMALL, *BATCH, *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_it_tells_what_has_come_of_each_set(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    given = (f"model.path={tiny_model}", f"data.latents={latents}", "--dtype", "bf16")
    told = said("latents", shards, *given)
    (folder,) = (latents / "shards").iterdir()
    (row,) = (line for line in told.splitlines() if line.startswith("│ 2"))
    assert [cell.strip() for cell in row.split("│")[1:6]] == ["2", "0", "60", "0", "0.00"]
    assert folder.name in "".join(told.split("│")).replace(" ", "").replace("\n", "")
    assert "start this again" not in told
    assert "60/60" in told
    assert "60/60" in said("latents", shards, *given)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), r"data\.latents is not set: give the folder for the latents as data\.latents=FOLDER"),
        (("data.latents=s3://bucket/latents",), "and latents are written to a local folder"),
        (("data.latents=here", "--dtype", "fp32"), "--dtype is 'fp32': use one of fp16, bf16"),
    ],
)
def test_mistakes(shards: Path, more: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        said("latents", shards, *more)


def test_pictures_can_be_looked_at_before_they_are_encoded(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = (f"model.path={tiny_model}", f"data.latents={tmp_path / 'nothing'}", "--out", str(tmp_path))
    assert "64×64" in said("stats", shards, *given, "--prompts", "4")
    assert "preview.html" in said("preview", shards, *given, "--samples", "2", "--draws", "2")
