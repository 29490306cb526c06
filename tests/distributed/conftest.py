"""What the tests of strategies share."""

from collections.abc import Iterator

import pytest

from tests.distributed.forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts groups of processes."""
    server = Forks()
    yield server
    server.close()
