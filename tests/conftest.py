"""Fixtures that several test folders share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, odd images and tag lists, which are kept beside the repository and not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real test data is not there: {SHARED_DATA}")
    return SHARED_DATA
