"""`python -m data_tools latents`: encode a recipe's pictures once, so that training need not."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_tools.latents.encode import encode
from finetune.checks import check_choice
from finetune.data.latents import DTYPES
from finetune.data.remote import is_remote
from finetune.errors import UserError
from finetune.recipes import read_recipe

GIB = 2**30


def latents(
    arguments: Annotated[list[str] | None, typer.Argument(help="conf=NAME key=value …, as for training.")] = None,
    dtype: Annotated[str, typer.Option(help="What is stored: fp16, or bf16, which is coarser and knows no limit.")] = (
        "fp16"
    ),
) -> None:
    """Encode the pictures of a recipe into data.latents, for all of its buckets. Start it as often as there are GPUs,
    on any number of machines that share the folder; run again, it goes on where it stopped."""
    config = read_recipe(arguments or [])
    check_choice("--dtype", dtype, tuple(DTYPES))
    if not config.data.latents:
        raise UserError("data.latents is not set: give the folder for the latents as data.latents=FOLDER")
    if is_remote(config.data.latents):
        raise UserError(
            f"data.latents is {config.data.latents}, and latents are written to a local folder: encode into one with "
            "data.latents=FOLDER, and copy it there"
        )
    with tempfile.TemporaryDirectory() as kept:
        outcomes = encode(config, Path(kept), dtype)
    table = Table("shards", "left to others", "samples", "no picture", "GiB", "where")
    for outcome in outcomes:
        numbers = (outcome.shards, outcome.left, outcome.samples, outcome.faults)
        table.add_row(*(f"{n:,}" for n in numbers), f"{outcome.size / GIB:.2f}", str(outcome.folder))
    table.columns[-1].overflow = "fold"
    console = Console(markup=False, highlight=False)
    console.print(table)
    if any(outcome.left for outcome in outcomes):
        console.print(
            "Other processes encode what is left, and the last of them writes the index; where there are none any "
            "more, start this again.",
            soft_wrap=True,
        )
