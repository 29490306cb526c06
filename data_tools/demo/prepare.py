"""What the demo trains on: pictures in shards, and an untrained model whose VAE knows such pictures."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from data_tools.build import build
from data_tools.demo.shapes import scenes, write_pictures
from data_tools.demo.tiny_model import TinySizes, save_tiny_model, teach_vae, tiny_vae, train_tokenizer
from finetune.data.buckets import fit
from finetune.data.images import load, probe

PICTURES = 3000
VAE_PICTURES = 1024
VAE_STEPS = 300
VAE_SIDE_PX = 48
WHITE = (255, 255, 255)


def prepare_demo(folder: Path) -> None:
    """Fill a folder with `images`, `shards`, `tokenizer` and `model`; done before, nothing is done."""
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


def _squares(folder: Path) -> Tensor:
    """Squares cut from the pictures' centres: uint8 [N, 3, 48, 48]."""
    pictures = []
    for path in sorted(folder.glob("*.png"))[:VAE_PICTURES]:
        data = path.read_bytes()
        info = probe(data)
        crop = fit(info.width, info.height, VAE_SIDE_PX, VAE_SIDE_PX, 0.5, 0.5)
        pictures.append(load(data, crop, False, WHITE))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
