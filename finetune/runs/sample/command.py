"""The command: what is asked for is read before the model is loaded."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.errors import UserError
from finetune.monitor.files import replace_text
from finetune.runs.folder import RunFolder, read_config
from finetune.runs.sample.axes import LABELS, read_table

PAGE = ".html"
AXIS = f"one of {', '.join(LABELS)}"


def sample(
    run: RunFolder,
    x: Annotated[
        str,
        typer.Option(help=f"AXIS or AXIS=VALUES, the columns; {AXIS}. Between values stand commas, between prompts |."),
    ] = "step",
    y: Annotated[str, typer.Option(help="AXIS or AXIS=VALUES, the rows.")] = "prompt",
    at: Annotated[
        list[str] | None, typer.Option(help="AXIS=VALUE of what is no axis, as seed=7; can be given again.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Width and height in px, as 512x768; the recipe's first.")] = None,
    average: Annotated[
        bool | None,
        typer.Option(
            "--ema/--raw", help="The average of the weights, or the weights themselves; the average where there is one."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The page, with a PNG of its name beside it; RUN/samples/xy-X-Y.html.", show_default=False),
    ] = None,
) -> None:
    """Sample a table of pictures over checkpoints (step), prompts, scales of guidance, seeds or sampling steps: a page
    and a PNG. What is not said is as the run's recipe has it; an axis without values has all of them."""
    config = read_config(run)
    table = read_table(run, config, x, y, at or [], size)
    out = out or run / "samples" / f"xy-{table.x.name}-{table.y.name}{PAGE}"
    if out.suffix != PAGE:
        raise UserError(f"--out {out}: give a name that ends in {PAGE}")
    _make(out.parent)
    # Only from here on torch and the model are needed, whose imports take seconds.
    from finetune.runs.sample.cells import sample_cells
    from finetune.runs.sample.page import page, picture

    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sampling", total=len(table.cells))
        pictures = sample_cells(
            run,
            table.cells,
            average=average,
            device=device,
            batch=config.monitor.samples.batch,
            told=lambda more: progress.advance(task, more),
        )
    replace_text(out, page(table, pictures, config.run.name))
    picture(table, pictures, config.run.name).save(out.with_suffix(".png"))
    Console().print(f"{out} and {out.with_suffix('.png').name} beside it", soft_wrap=True, markup=False)


def _make(folder: Path) -> None:
    """Make the page's folder, before anything is sampled. Raises UserError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give another place, as --out") from error
