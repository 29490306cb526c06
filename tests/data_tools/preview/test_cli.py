"""`python -m data_tools preview`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from data_tools.__main__ import app
from data_tools.indexing import index_folder
from finetune.errors import UserError
from tests.data_tools.preview.conftest import arguments, noise, write_shard
from tests.data_tools.test_indexing import write_tar

BRACKETS = [{"tags": ["[bold]", "dog"], "caption": "a [red]dog[/red] :smile:"}]


def test_the_command(tmp_path: Path, tiny_model: Path) -> None:
    shards = write_shard(tmp_path / "shards", [{"tags": ["dog"], "caption": "a dog"}] * 3)
    command = [sys.executable, "-m", "data_tools", "preview", *arguments(shards, tiny_model), "--sample", "002"]
    done = subprocess.run([*command, "--draws", "3"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("page: preview.html\n")
    assert "002" in (tmp_path / "preview.html").read_text(encoding="utf-8")


def run(*given: str) -> str:
    done = CliRunner().invoke(app, ["preview", *given], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_terminal_shows_labels_to_the_letter(tmp_path: Path, tiny_model: Path) -> None:
    shards = write_shard(tmp_path / "shards", BRACKETS)
    settings = (
        "captions.tags.implications={pairs: [[dog, '[bold]']], drop: [1.0, 1.0]}",
        "captions.mix={tags_caption: 1}",
    )
    told = run(*arguments(shards, tiny_model, *settings), "--draws", "2", "--out", str(tmp_path))
    assert (tmp_path / "preview.html").is_file()
    assert "[bold], dog" in told
    assert "a [red]dog[/red] :smile:" in told
    assert "implied by dog" in " ".join(told.split())


def test_the_share_that_counts_is_told(tmp_path: Path, tiny_model: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 51).save(buffer, "PNG")
    write_tar(tmp_path / "shards" / "0.tar", [("0.png", noise(0, (64, 64))), ("0.mask.png", buffer.getvalue())])
    index_folder(tmp_path / "shards", "auto", workers=1)
    told = run(*arguments(tmp_path / "shards", tiny_model, "data.mask=member"), "--out", str(tmp_path / "a.html"))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    for shown in (told, page):
        assert "20% counts, the rest is grey" in shown
    assert "a picture beside it says what counts" in page


def test_long_lists_are_cut(tmp_path: Path, tiny_model: Path) -> None:
    shards = write_shard(tmp_path / "shards", [{"tags": [f"tag {n}" for n in range(50)]}])
    told = run(*arguments(shards, tiny_model, "captions.tags.drop=0.9"), "--out", str(tmp_path / "new" / "a.html"))
    assert "… 10 more" in " ".join(told.split())
    assert (tmp_path / "new" / "a.html").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sample", "nothing"], "no sample has the key 'nothing'"),
        (["model.path=/no/model"], "model.path /no/model is neither a folder nor a hub id"),
        (["data.shards=/nowhere"], "there is no index /nowhere/index.arrow"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, tiny_model: Path, given: list[str], message: str) -> None:
    shards = write_shard(tmp_path / "shards", BRACKETS)
    with pytest.raises(UserError, match=message):
        run(*arguments(shards, tiny_model), *given, "--out", str(tmp_path / "a.html"))
    assert not (tmp_path / "a.html").exists()
