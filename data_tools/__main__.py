"""`python -m data_tools`: build, index and look at data sets."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from data_tools.build import build
from data_tools.demo.cli import app as demo
from data_tools.indexing import Refused, expand, files_below, index_folder, index_shards, verify_index, write_refused
from data_tools.loose import index_tree
from finetune.commands import with_later
from finetune.data.config import TEXT_KINDS
from finetune.data.index import Index
from finetune.entry import enter
from finetune.errors import UserError

LATER = {
    "stats": (
        "stats.cli.stats",
        "Show which buckets a recipe's data fill, how much is scaled up, cropped away and left out, and which prompts "
        "it makes.",
    ),
    "preview": (
        "preview.cli.preview",
        "Show which prompts and crops a recipe makes of some samples, draw by draw.",
    ),
    "latents": ("latents.cli.latents", "Encode the pictures of a recipe once, so that training need not."),
}
"""Commands that need the model's libraries: of each the function in this folder, and what the list of commands says of
it."""

app = typer.Typer(
    cls=with_later("data_tools", LATER),
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
    pretty_exceptions_enable=False,
)
app.add_typer(demo, name="demo")
console = Console(markup=False)

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
    shards: Annotated[
        list[str],
        typer.Argument(
            help="A folder of webdataset shards (.tar) or of loose pictures; or shards as paths and URLs, brace "
            "ranges, globs, and .txt files that list them."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the index; a folder of data takes its own.")] = None,
    text: Text = "auto",
    workers: Workers = CORES,
    verify: Annotated[bool, typer.Option(help="Compare all shards with the index that is there.")] = False,
) -> None:
    """Index shards that were made elsewhere, or loose pictures in place. Run again, it reads what is new only."""
    _check_text(text)
    folder = Path(shards[0]) if len(shards) == 1 and Path(shards[0]).is_dir() else None
    if verify:
        _verify(folder or Path(shards[0]), workers)
    elif folder and not files_below(folder, {"tar"}):
        _report(out or folder, *index_tree(folder, out or folder, text, workers))
    elif folder and out is None:
        _report(folder, *index_folder(folder, text, workers))
    elif out is None:
        raise UserError(
            f"{shards[0]} is no folder: give one that exists, or say with --out FOLDER where the index goes"
        )
    else:
        _report(out, *index_shards(expand(shards), out, text, workers))


def _verify(folder: Path, workers: int) -> None:
    index = Index.load(folder)
    verified = verify_index(index, workers)
    elsewhere = len(index.shards) - verified
    console.print(f"{verified} shards are as they were indexed{f'; {elsewhere} lie elsewhere' if elsewhere else ''}.")


def _check_text(text: str) -> None:
    if text not in TEXT_KINDS:
        raise UserError(f"--text is {text!r}: use one of {', '.join(TEXT_KINDS)}")


def _report(folder: Path, index: Index, refused: list[Refused]) -> None:
    tagged, captioned, masked = (
        np.count_nonzero(index.numbers(name)) for name in ("has_tags", "has_caption", "mask_size")
    )
    console.print(
        f"{len(index):,} samples, shards: {len(index.shards):,} "
        f"({sum(s.size for s in index.shards) / 2**30:.2f} GiB): {tagged:,} with tags, "
        f"{captioned:,} with a caption, {masked:,} with a mask"
    )
    if (most := int(index.repeats.max())) > 1:
        console.print(f"Folders' names ask for up to {most} draws of a sample per epoch.")
    path = write_refused(folder, refused)
    if not refused:
        return
    table = Table("refused", "reason", title=f"{len(refused):,} refused; all of them in {path}", title_justify="left")
    for reason, count in Counter(r.reason for r in refused).most_common(REASONS_SHOWN):
        table.add_row(f"{count:,}", reason)
    console.print(table)


if __name__ == "__main__":
    enter(app)
