"""Runs that something befalls, and those that nothing does."""

from pathlib import Path

import pytest

from data_tools.build import build
from tests.conftest import write_pictures
from tests.faults.scene import STEPS, MakeScene, Reference, Scene, arguments, assert_continuous, save_model


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 pictures, of which an epoch is seven and a half steps."""
    folder = tmp_path_factory.mktemp("faults")
    write_pictures(folder / "pictures", 60)
    build(folder / "pictures", folder / "shards", shard_mib=1, text_as="auto", workers=1)
    return folder / "shards"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a model that trains smoothly."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder / "model"


@pytest.fixture(scope="session")
def make_scene(pictures: Path, model: Path) -> MakeScene:
    """Makes a run in a folder."""

    def make(runs: Path, *overrides: str, processes: int = 1) -> Scene:
        return Scene(runs, (*arguments(runs, pictures, model), *overrides), processes)

    return make


@pytest.fixture
def scene(make_scene: MakeScene, tmp_path: Path) -> Scene:
    """A run in one process."""
    return make_scene(tmp_path)


@pytest.fixture
def pair(make_scene: MakeScene, tmp_path: Path) -> Scene:
    """A run in two processes under ZeRO-2."""
    return make_scene(tmp_path, "strategy=zero2", processes=2)


@pytest.fixture(scope="session")
def reference(make_scene: MakeScene, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Makes runs that nothing befalls, each of them once."""
    made: dict[tuple[tuple[str, ...], int], Path] = {}

    def run(*overrides: str, processes: int = 1) -> Path:
        key = (overrides, processes)
        if key not in made:
            made[key] = make_scene(tmp_path_factory.mktemp("reference"), *overrides, processes=processes).finish()
            assert_continuous(made[key], STEPS)
        return made[key]

    return run


@pytest.fixture(scope="session")
def whole(reference: Reference) -> Path:
    """The run in one process that nothing befalls."""
    return reference()


@pytest.fixture(scope="session")
def whole_pair(reference: Reference) -> Path:
    """The run in two processes that nothing befalls."""
    return reference("strategy=zero2", processes=2)
