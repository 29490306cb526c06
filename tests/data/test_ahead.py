"""Fetching ahead: the shards of the windows that come next, no others, and nothing that outlives its use."""

import io
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.indexing import index_folder
from finetune.data import outage
from finetune.data.ahead import GIB, Ahead, any_remote, cache_needed, check_cache, is_first_on_machine
from finetune.data.config import CacheConfig
from finetune.data.plan import Plan
from finetune.data.prepare import DataSet
from finetune.data.sources import Sources
from finetune.errors import UserError
from tests.helpers import data_config, open_data
from tests.servers import FaultyServer, faulty_http

Shards = set[tuple[int, int]]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.05)


@pytest.fixture(scope="module")
def five_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of 40 pictures each and their index."""
    folder = tmp_path_factory.mktemp("five")
    noise = np.random.default_rng(0)
    for shard in range(5):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(40):
                picture = io.BytesIO()
                pixels = noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(picture, "PNG", compress_level=0)
                info = tarfile.TarInfo(f"{shard}-{number}.png")
                info.size = len(picture.getvalue())
                tar.addfile(info, io.BytesIO(picture.getvalue()))
    index_folder(folder, "auto", workers=1)
    return folder


@pytest.fixture
def server(five_shards: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    """Five shards and their index, far away."""
    shutil.copytree(five_shards, tmp_path / "remote")
    with faulty_http(tmp_path / "remote") as server:
        yield server


@pytest.fixture
def dataset(server: FaultyServer, tmp_path: Path) -> DataSet:
    cache = CacheConfig(folder=str(tmp_path / "cache"), timeout_s=1.0)
    return open_data(data_config(server.url, cache=cache), tmp_path / "kept")


def opened(dataset: DataSet) -> tuple[Plan, Sources]:
    journal = dataset.began()
    return dataset.plan(journal), dataset.sources(journal)


def held(sources: Sources) -> Shards:
    """The shards in the cache."""
    index = sources.all[0].index
    urls = [index.location(number) for number in range(len(index.shards))]
    return {(0, i) for i, url in enumerate(urls) if sources._cache.holds(url, index.shards[i])}


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetching() -> int:
    """How many threads fetch."""
    return sum(thread.name == "fetch" for thread in threading.enumerate())


def asked_for(server: FaultyServer) -> set[str]:
    return {request.path for request in server.requests if request.path.endswith(".tar")}


def test_this_window_and_the_next_and_no_others(dataset: DataSet, server: FaultyServer) -> None:
    plan, sources = opened(dataset)
    steps = {next(plan.windows(step))[1]: step for step in reversed(range(plan.steps(1)))}
    assert sorted(steps) == [0, 1, 2, 3, 4]
    windows = [plan.shards_in(0, window) for window in range(5)]
    with Ahead(plan, sources, windows=1, downloads=2, step=0) as ahead:
        wait_for(lambda: held(sources) == windows[0] | windows[1])
        for window in range(1, 4):
            ahead.reached(steps[window])
            wait_for(lambda w=window: held(sources) == set().union(*windows[: w + 2]))  # type: ignore[misc]
    wait_for(lambda: not fetching())
    assert len(asked_for(server)) == 5
    assert sum(request.path.endswith(".tar") for request in server.requests) == 5  # each once, in one piece


def test_it_begins_where_the_run_is(dataset: DataSet) -> None:
    plan, sources = opened(dataset)
    step = plan.steps(2.5)
    with Ahead(plan, sources, windows=0, downloads=4, step=step):
        wait_for(lambda: held(sources) == plan.shards_in(*next(plan.windows(step))))


def test_the_windows_after_an_epoch_are_those_of_the_next(dataset: DataSet) -> None:
    plan, sources = opened(dataset)
    with Ahead(plan, sources, windows=7, downloads=4, step=0):
        wait_for(lambda: len(held(sources)) == 5)


def test_a_shard_dropped_meanwhile_is_fetched_when_its_window_comes_again(dataset: DataSet) -> None:
    plan, sources = opened(dataset)
    first = plan.shards_in(0, 0)
    other, again = (
        next(step for step in range(10**4) if next(plan.windows(step))[0] == epoch and found(step))
        for epoch, found in (
            (0, lambda step: plan.shards_in(*next(plan.windows(step))) != first),
            (1, lambda step: plan.shards_in(*next(plan.windows(step))) == first),
        )
    )
    with Ahead(plan, sources, windows=0, downloads=1, step=0) as ahead:
        wait_for(lambda: held(sources) == first)
        ahead.reached(other)
        wait_for(lambda: len(held(sources)) == 2)
        for path in sources._cache._folder.rglob("*.tar"):
            path.unlink()
        ahead.reached(again)
        wait_for(lambda: held(sources) == first)


def test_faults_are_waited_out(dataset: DataSet, server: FaultyServer) -> None:
    plan, sources = opened(dataset)
    server.fail(503, seconds=0.5)
    with Ahead(plan, sources, windows=0, downloads=2, step=0):
        wait_for(lambda: held(sources) == plan.shards_in(0, 0))


def test_a_shard_that_is_another_stops_no_thread(dataset: DataSet, server: FaultyServer) -> None:
    plan, sources = opened(dataset)
    (number,) = (shard for _, shard in plan.shards_in(0, 0))
    path = server.folder / sources.all[0].index.shards[number].name
    path.write_bytes(bytes(path.stat().st_size))
    with Ahead(plan, sources, windows=4, downloads=1, step=0):
        wait_for(lambda: len(held(sources)) == 4)
    with pytest.raises(UserError, match=path.name):
        sources.fetch(0, number, 0)


@pytest.mark.parametrize("fault", ["hangs", "fails", None])
@pytest.mark.parametrize("error", [False, True])
def test_it_ends_promptly(
    dataset: DataSet, server: FaultyServer, fault: str | None, error: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sources = opened(dataset)
    if fault == "hangs":
        server.hang_next(100, 1000.0)
    elif fault == "fails":
        monkeypatch.setattr(outage, "FIRST_WAIT_S", 1000.0)
        monkeypatch.setattr(outage, "LONGEST_WAIT_S", 1000.0)
        server.fail(500)
    with suppress(KeyError), Ahead(plan, sources, windows=1, downloads=2, step=0):
        wait_for(lambda: len(asked_for(server)) >= 1)
        begun = time.monotonic()
        if error:
            raise KeyError
    assert time.monotonic() - begun < 0.5
    server.heal()
    wait_for(lambda: not fetching())
    # What has ended does not spoil what comes after it.
    with Ahead(plan, sources, windows=0, downloads=2, step=0):
        wait_for(lambda: held(sources) >= plan.shards_in(0, 0))


def test_local_shards_need_no_threads(shards: Path) -> None:
    plan, sources = opened(open_data(data_config(shards), shards / "kept"))
    assert not any_remote(sources)
    with Ahead(plan, sources, windows=1, downloads=4, step=0) as ahead:
        ahead.reached(1)
        assert not fetching()
    check_cache(plan, sources, windows_ahead=1, size_gib=1e-9)


def test_other_ranks_need_no_threads(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, sources = opened(dataset)
    with Ahead(plan, sources, windows=-1, downloads=4, step=0) as ahead:
        ahead.reached(1)
        assert not fetching()
    for rank, first in (("0", True), ("3", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert is_first_on_machine() == first
    monkeypatch.delenv("LOCAL_RANK")
    assert is_first_on_machine()


def test_a_cache_too_small_is_refused_before_the_run(dataset: DataSet) -> None:
    plan, sources = opened(dataset)
    assert any_remote(sources)
    sizes = [shard.size for shard in sources.all[0].index.shards]
    assert cache_needed(plan, sources, windows_ahead=0) == max(sizes)
    assert cache_needed(plan, sources, windows_ahead=99) == sum(sizes)
    two = cache_needed(plan, sources, windows_ahead=1)
    assert max(sizes) < two <= 2 * max(sizes)
    check_cache(plan, sources, windows_ahead=1, size_gib=two / GIB)
    with pytest.raises(UserError, match=r"data\.cache\.size_gib is .*wanted at the same time: raise it"):
        check_cache(plan, sources, windows_ahead=1, size_gib=(two - 1) / GIB)
