"""`python -m data_tools`: build and index data sets."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_tools.build import build
from data_tools.demo.cli import app as demo
from data_tools.indexing import Refused, index_folder, verify_folder
from finetune.data.config import TEXT_KINDS
from finetune.data.index import Index
from finetune.entry import enter
from finetune.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(demo, name="demo")
console = Console()

Text = Annotated[str, typer.Option(help="What .txt files hold: auto, tags or caption.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
CORES = os.cpu_count() or 1
REASONS_SHOWN = 12


@app.command("build")
def build_command(
    source: Annotated[Path, typer.Argument(help="Folder tree of pictures with .txt and .json side files.")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards and their index.")],
    text: Text = "auto",
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard in MiB.")] = 256,
    workers: Workers = CORES,
) -> None:
    """Pack pictures into webdataset shards with their index. Every picture is decoded once to be sure of it. Run again,
    it goes on where it stopped."""
    _check_text(text)
    _report(out, *build(source, out, shard_mib=shard_mib, text_as=text, workers=workers))


@app.command("index")
def index_command(
    folder: Annotated[Path, typer.Argument(help="Folder of webdataset shards (.tar).")],
    text: Text = "auto",
    workers: Workers = CORES,
    verify: Annotated[bool, typer.Option(help="Compare all shards with the index that is there.")] = False,
) -> None:
    """Index shards that were made elsewhere. Run again, it reads new shards only."""
    _check_text(text)
    if verify:
        index = verify_folder(folder, workers)
        console.print(f"{len(index.shards)} shards are as they were indexed.")
    else:
        _report(folder, *index_folder(folder, text, workers))


def _check_text(text: str) -> None:
    if text not in TEXT_KINDS:
        raise UserError(f"--text is {text!r}: use one of {', '.join(TEXT_KINDS)}")


def _report(folder: Path, index: Index, refused: list[Refused]) -> None:
    tagged, captioned = int(index.has_tags.sum()), int(index.has_caption.sum())
    console.print(
        f"{len(index):,} samples, shards: {len(index.shards):,} "
        f"({sum(s.size for s in index.shards) / 2**30:.2f} GiB): {tagged:,} with tags, {captioned:,} with a caption"
    )
    path = folder / "refused.jsonl"
    path.write_text("".join(json.dumps(r._asdict(), ensure_ascii=False) + "\n" for r in refused), encoding="utf-8")
    if not refused:
        return
    table = Table("refused", "reason", title=f"{len(refused):,} refused; all of them in {path}", title_justify="left")
    for reason, count in Counter(r.reason for r in refused).most_common(REASONS_SHOWN):
        table.add_row(f"{count:,}", reason)
    console.print(table)


if __name__ == "__main__":
    enter(app)
