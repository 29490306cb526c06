"""Fixtures for the preview's tests."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.indexing import index_folder
from data_tools.preview.draws import Preview, collect
from finetune.config import Config
from finetune.recipe_data import Opened, open_recipe
from finetune.recipes import read_recipe
from tests.data_tools.test_indexing import write_tar

SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]
Open = Callable[..., tuple[Config, Opened]]
Look = Callable[..., Preview]


def noise(seed: int, size: tuple[int, int]) -> bytes:
    """A picture that looks the same neither mirrored nor moved."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(folder: Path, labels: list[dict[str, Any]], sizes: list[tuple[int, int]] | None = None) -> Path:
    """A shard with a picture for each labels, under the keys 000, 001, …"""
    members = []
    for number, fields in enumerate(labels):
        size = sizes[number] if sizes else ((96, 96), (80, 120), (120, 80))[number % 3]
        members += [(f"{number:03}.png", noise(number, size)), (f"{number:03}.json", json.dumps(fields).encode())]
    write_tar(folder / "0.tar", members)
    index_folder(folder, "auto", workers=1)
    return folder


def arguments(shards: Path | str, model: Path, *settings: str) -> list[str]:
    """A recipe of small buckets."""
    batch = ["train.micro_batch=1", "train.global_batch=1"]
    return ["conf=demo", *SMALL, *batch, f"data.shards={shards}", f"model.path={model}", "captions.drop=0", *settings]


@pytest.fixture
def opened(tmp_path: Path, tiny_model: Path) -> Open:
    """(labels of samples or a folder of shards, settings, …) -> the recipe and what is opened with it."""

    def open_with(data: list[dict[str, Any]] | Path, *settings: str) -> tuple[Config, Opened]:
        shards = data if isinstance(data, Path) else write_shard(tmp_path / "shards", data)
        config = read_recipe(arguments(shards, tiny_model, *settings))
        return config, open_recipe(config, tmp_path / "kept")

    return open_with


@pytest.fixture
def look(opened: Open) -> Look:
    """(labels of samples or a folder of shards, settings, …) -> what the preview shows."""

    def look_with(data: list[dict[str, Any]] | Path, *settings: str, **wanted: Any) -> Preview:
        config, found = opened(data, *settings)
        return collect("demo", config, found, wanted.pop("keys", ()), **wanted)

    return look_with
