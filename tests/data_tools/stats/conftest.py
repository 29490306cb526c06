"""Fixtures for the figures' tests."""

from pathlib import Path

import pytest

from data_tools.indexing import index_folder
from tests.data_tools.test_indexing import picture, write_tar

SIZES = {"wide": (400, 100), "small": (40, 40), "square": (300, 300), "exact": (64, 64), "tall": (100, 200)}


@pytest.fixture
def odd_shards(tmp_path: Path) -> Path:
    """Five pictures of as many sizes, of which one has tags and one a caption."""
    members = [(f"{name}.png", picture(9, size)) for name, size in SIZES.items()]
    write_tar(tmp_path / "a.tar", [*members, ("wide.txt", b"dog"), ("tall.json", b'{"caption": "a cat"}')])
    index_folder(tmp_path, "auto", workers=1)
    return tmp_path
