"""`python -m data_tools demo`: make what the demo trains on, and report what came of it.

The work is imported when a command runs: torch takes seconds that the other tools need not wait for.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data_tools.demo.shapes import PALETTE

app = typer.Typer(no_args_is_help=True, help="A small run from end to end, on any machine.")


@app.command()
def prepare(folder: Annotated[Path, typer.Argument(help="Folder for pictures, shards and model.")]) -> None:
    """Draw pictures, pack them into shards, and make an untrained model of SD1.5's shape."""
    from data_tools.demo.prepare import prepare_demo

    prepare_demo(folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `prepare` filled.")],
    run: Annotated[Path, typer.Argument(help="The run's folder, runs/demo.")],
) -> None:
    """Ask the untrained and the trained model for 64 pictures that neither has seen, and check their colours."""
    from data_tools.demo.score import compare

    scores = compare(folder / "model", run / "export", run)
    table = Table("", "shape's colour", "background's colour", title="pictures in the colour that was asked for")
    for name, share in scores.items():
        table.add_row(name, f"{share['shape_colour']:.0%}", f"{share['background_colour']:.0%}")
    table.add_row("by chance", f"{1 / len(PALETTE):.0%}", f"{1 / len(PALETTE):.0%}")
    console = Console()
    console.print(table)
    for what, path in (
        ("samples", run / "samples" / "demo.png"),
        ("curves", run / "curves.png"),
        ("scores", run / "demo.json"),
        ("model", run / "export"),
    ):
        console.print(f"{what:9}{path}")
