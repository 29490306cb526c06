"""Fixtures that several test folders share."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.build import build
from data_tools.demo.tiny_model import TinySizes, save_tiny_model, train_tokenizer
from tests.twins import save_sd2, save_sd15, save_sdxl

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TINY = TinySizes(unet=(8, 8, 16, 16), vae=(4, 4, 8, 8), text=16, text_layers=3)
"""SD1.5's shape: four levels, a VAE that shrinks by 8, cross-attention on all levels but the deepest."""

os.environ.setdefault("WANDB_MODE", "offline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real processes come first, so that at the end no worker is left alone with a long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, odd images and tag lists, which are kept beside the repository and not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real test data is not there: {SHARED_DATA}")
    return SHARED_DATA


def write_pictures(folder: Path, count: int) -> None:
    """Small noisy pictures of three aspect ratios with tags and a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for i in range(count):
        height, width = ((96, 96), (80, 120), (120, 80))[i % 3]
        Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        labels = {"tags": ["tag", f"tag {i}"], "caption": f"picture number {i}"}
        (folder / f"{i}.json").write_text(json.dumps(labels))


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Build shards of 1 MiB from small pictures: (name, count) -> folder."""

    def make(name: str, count: int = 60) -> Path:
        write_pictures(tmp_path / f"{name}-pictures", count)
        build(tmp_path / f"{name}-pictures", tmp_path / name, shard_mib=1, text_as="auto", workers=1)
        return tmp_path / name

    return make


@pytest.fixture
def shards(make_shards: Callable[..., Path]) -> Path:
    """A folder of two shards with their index."""
    return make_shards("shards")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD1.5's shape with random weights and a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = [f"picture number {i}, tag {i}" for i in range(100)]
    save_tiny_model(folder / "model", train_tokenizer(texts, folder / "tokenizer"), TINY)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD1.5's exact shape, thin."""
    folder = tmp_path_factory.mktemp("sd15")
    save_sd15(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD2.1-v's exact shape, thin."""
    folder = tmp_path_factory.mktemp("sd2")
    save_sd2(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SDXL's exact shape, thin."""
    folder = tmp_path_factory.mktemp("sdxl")
    save_sdxl(folder)
    return folder


@pytest.fixture(params=["tiny_sd15", "tiny_sd2", "tiny_sdxl"])
def twin(request: pytest.FixtureRequest) -> Path:
    """Each family's tiny twin in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder
