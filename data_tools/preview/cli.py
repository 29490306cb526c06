"""`python -m data_tools preview`: what a recipe makes of its data, before a GPU is rented."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_tools.preview.draws import collect
from data_tools.preview.page import page
from data_tools.preview.terminal import tables
from finetune.recipe_data import open_recipe
from finetune.recipes import read_recipe, split_arguments

NAME = "preview.html"


def preview(
    arguments: Annotated[list[str] | None, typer.Argument(help="conf=NAME key=value …, as for training.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Key of a sample, or id:N; may be repeated.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of every sample, one an epoch.")] = 20,
    samples: Annotated[int, typer.Option(min=1, help="Samples, where none are named: spread over all.")] = 12,
    out: Annotated[Path, typer.Option(help="The page, or a folder for it.")] = Path(NAME),
) -> None:
    """Show which prompts and crops a recipe makes of some samples, draw by draw, here and as a page."""
    config = read_recipe(arguments or [])
    config = replace(config, data=replace(config.data, latents=None))  # which are no pictures to be shown
    with tempfile.TemporaryDirectory() as kept:
        opened = open_recipe(config, Path(kept))
        seen = collect(split_arguments(arguments or [])[0], config, opened, sample or [], samples=samples, draws=draws)
    console = Console(markup=False, emoji=False, highlight=False)
    for table in tables(seen):
        console.print(table)
    target = out / NAME if out.is_dir() else out
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(seen), encoding="utf-8")
    console.print(f"page: {target}", soft_wrap=True)
