"""`python -m data_tools demo`: make what the demo trains on, and report what came of it."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_tools.build import build
from data_tools.demo.score import compare
from data_tools.demo.shapes import PALETTE, scenes, write_pictures
from data_tools.demo.tiny_model import TinySizes, save_tiny_model, teach_vae, tiny_vae, train_tokenizer
from finetune.data.buckets import fit
from finetune.data.images import load, probe

app = typer.Typer(no_args_is_help=True, help="A small run from end to end, on any machine.")
PICTURES = 3000
VAE_STEPS = 300
VAE_SIDE_PX = 48


@app.command()
def prepare(folder: Annotated[Path, typer.Argument(help="Folder for pictures, shards and model.")]) -> None:
    """Draw pictures, pack them into shards, and make an untrained model of SD1.5's shape."""
    if (folder / "model" / "model_index.json").exists():
        return
    write_pictures(folder / "images", PICTURES)
    build(folder / "images", folder / "shards", shard_mib=1, text_as="auto", workers=2)
    drawn, _ = scenes()
    tokenizer = train_tokenizer([t for s in drawn for t in (s.caption, *s.tags)], folder / "tokenizer")
    sizes = TinySizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = tiny_vae(sizes)
    columns = (TextColumn("teaching the VAE"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("vae", total=VAE_STEPS, loss=float("nan"))
        teach_vae(vae, _squares(folder / "images"), VAE_STEPS, lambda loss: bar.update(task, advance=1, loss=loss))
    save_tiny_model(folder / "model", tokenizer, sizes, vae=vae)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `prepare` filled.")],
    run: Annotated[Path, typer.Argument(help="The run's folder, runs/demo.")],
) -> None:
    """Ask the untrained and the trained model for 64 pictures that neither has seen, and check their colours."""
    scores = compare(folder / "model", run / "export", run)
    table = Table("", "shape's colour", "background's colour", title="pictures in the colour that was asked for")
    for name, share in scores.items():
        table.add_row(name, f"{share['shape_colour']:.0%}", f"{share['background_colour']:.0%}")
    table.add_row("by chance", f"{1 / len(PALETTE):.0%}", f"{1 / len(PALETTE):.0%}")
    console = Console()
    console.print(table)
    for what, path in (
        ("samples", run / "samples" / "trained.png"),
        ("untrained", run / "samples" / "untrained.png"),
        ("curves", run / "curves.png"),
        ("scores", run / "demo.json"),
        ("model", run / "export"),
    ):
        console.print(f"{what:10}{path}")


def _squares(folder: Path) -> torch.Tensor:
    """Squares cut from the pictures' centres: uint8 [N, 3, 64, 64]."""
    pictures = []
    for path in sorted(folder.glob("*.png"))[:1024]:
        data = path.read_bytes()
        info = probe(data)
        crop = fit(info.width, info.height, VAE_SIDE_PX, VAE_SIDE_PX, 0.5, 0.5)
        pictures.append(load(data, crop, False, (255, 255, 255)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
