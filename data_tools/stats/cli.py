"""`python -m data_tools stats`: figures of a recipe's data and prompts."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_tools.stats.bucket_picture import draw_buckets
from data_tools.stats.bucket_tables import bucket_tables
from data_tools.stats.buckets import Stats, collect
from data_tools.stats.looking import look
from data_tools.stats.prompt_picture import draw_prompts
from data_tools.stats.prompt_tables import prompt_tables
from data_tools.stats.prompts import PromptFigures
from data_tools.stats.sources import open_sources, sources_of
from finetune.config import Config
from finetune.recipe_data import open_recipe
from finetune.recipes import read_recipe


def stats(
    arguments: Annotated[list[str] | None, typer.Argument(help="conf=NAME key=value …, as for training.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
    prompts: Annotated[
        int, typer.Option(min=0, help="Samples whose prompts are drawn; 0 leaves prompts out and needs no tokenizer.")
    ] = 1000,
    draws: Annotated[int, typer.Option(min=1, help="Prompts of each of these samples.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which buckets a recipe's data fill, how much is scaled up, cropped away and left out, and which prompts it
    makes; draw it as `stats.png` and `prompts.png`."""
    config = read_recipe(arguments or [])
    # What they are made from is looked at: they may not be there yet.
    config = replace(config, data=replace(config.data, latents=None))
    buckets, drawn = _figures(config, prompts, draws)
    pictures = _pictures(buckets, drawn, out)
    if as_json:
        print(json.dumps({**buckets.to_plain(), "prompts": drawn.to_plain() if drawn else None}))
        return
    console = Console(markup=False, emoji=False)
    for table in [*bucket_tables(buckets), *(prompt_tables(drawn) if drawn else [])]:
        console.print(table)
    for picture in pictures:
        console.print(f"picture: {picture}")


def _figures(config: Config, prompts: int, draws: int) -> tuple[Stats, PromptFigures | None]:
    with tempfile.TemporaryDirectory() as kept:
        if not prompts:
            return collect(open_sources(config, Path(kept))), None
        opened = open_recipe(config, Path(kept))
        sources = sources_of(opened.dataset, opened.journal)
        return collect(sources), look(config, opened, sources, prompts, draws)


def _pictures(buckets: Stats, prompts: PromptFigures | None, out: Path) -> list[Path]:
    """Draw all there is to draw."""
    out.mkdir(parents=True, exist_ok=True)
    draw_buckets(buckets, out / "stats.png")
    if not prompts:
        return [out / "stats.png"]
    draw_prompts(prompts, out / "prompts.png")
    return [out / "stats.png", out / "prompts.png"]
