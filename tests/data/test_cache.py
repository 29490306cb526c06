"""The cache: what lies in it is what was indexed, whoever fetched it, however often that was interrupted."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.data import cache as cache_module
from finetune.data import outage
from finetune.data.cache import Cache
from finetune.data.index import Shard
from finetune.data.outage import Patience, read_notes
from finetune.data.remote import Mismatch, Remote
from finetune.errors import UserError
from tests.servers import FaultyServer, faulty_http

PIECE = 100_000
SIZE = 10 * PIECE - 7
NAMES = [f"{i}.tar" for i in range(6)]


@pytest.fixture(autouse=True)
def _small_pieces_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "remote").mkdir()
    for name in NAMES:
        (tmp_path / "remote" / name).write_bytes(os.urandom(SIZE))
    with faulty_http(tmp_path / "remote") as server:
        yield server


def shard_of(server: FaultyServer, name: str) -> tuple[str, Shard]:
    """The URL of a file, and what an index would say of it."""
    data = (server.folder / name).read_bytes()
    return f"{server.url}/{name}", Shard(f"{server.url}/{name}", len(data), hashlib.sha256(data).hexdigest(), 1)


def open_cache(folder: Path, limit_bytes: int = 2**30, notes: Path | None = None) -> Cache:
    return Cache(folder, limit_bytes, Remote(timeout_s=0.3), Patience(notes, alert_after_s=0.2))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return open_cache(tmp_path / "cache")


def files(folder: Path) -> list[str]:
    """The suffixes of all files of a cache but its lock."""
    return sorted(path.suffix for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def ranges(server: FaultyServer) -> list[str | None]:
    """The ranges of files that were asked for."""
    return [request.range for request in server.requests]


def test_a_file_is_fetched_once(server: FaultyServer, cache: Cache, tmp_path: Path) -> None:
    url, shard = shard_of(server, "0.tar")
    assert cache.holds(url, shard) is None
    path = cache.fetch(url, shard)
    assert path.read_bytes() == (server.folder / "0.tar").read_bytes()
    assert len(server.requests) == 10
    assert (
        cache.fetch(url, shard) == cache.holds(url, shard) == open_cache(tmp_path / "cache").holds(url, shard) == path
    )
    assert len(server.requests) == 10
    assert files(tmp_path / "cache") == [".tar"]


def test_an_interrupted_fetch_goes_on(server: FaultyServer, tmp_path: Path) -> None:
    url, shard = shard_of(server, "0.tar")
    cache = open_cache(tmp_path / "cache")
    read = cache._remote.read

    def dies(url: str, offset: int, size: int) -> bytes:
        if offset >= 4 * PIECE:
            raise KeyboardInterrupt
        return read(url, offset, size)

    cache._remote.read = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(url, shard)
    assert files(tmp_path / "cache") == [".part"]
    server.requests.clear()
    path = open_cache(tmp_path / "cache").fetch(url, shard)
    assert path.read_bytes() == (server.folder / "0.tar").read_bytes()
    assert ranges(server)[0] == f"bytes={4 * PIECE}-{5 * PIECE - 1}"
    assert len(server.requests) == 6


def killed(folder: Path, url: str, shard: Shard) -> None:
    """Fetch until killed."""
    open_cache(folder).fetch(url, shard)


def test_a_killed_fetch_goes_on(server: FaultyServer, cache: Cache, tmp_path: Path) -> None:
    url, shard = shard_of(server, "0.tar")
    data = (server.folder / "0.tar").read_bytes()
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "cache", url, shard))
    server.hang_next(10, 0.1)
    process.start()
    while len(server.requests) < 4:
        time.sleep(0.01)
    process.kill()
    process.join()
    server.heal()
    server.requests.clear()
    assert cache.fetch(url, shard).read_bytes() == data
    assert len(server.requests) <= 8


@pytest.mark.parametrize("fault", ["fails", "is missing", "hangs", "cuts", "ignores ranges"])
def test_faults_of_the_server_pass(server: FaultyServer, cache: Cache, fault: str) -> None:
    url, shard = shard_of(server, "0.tar")
    heals: Callable[[], None] = server.heal
    if fault == "fails":
        server.fail(500)
    elif fault == "is missing":
        server.vanish("0.tar")
    elif fault == "hangs":
        server.hang_next(2, 1000.0)
    elif fault == "cuts":
        server.cut_next(3)
    else:
        server.ignore_range = True
    threading.Timer(0.5, heals).start()
    assert cache.fetch(url, shard).read_bytes() == (server.folder / "0.tar").read_bytes()


def test_a_long_outage_is_told_and_asks_seldom(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.1)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.5)
    notes = tmp_path / "notes"
    cache = open_cache(tmp_path / "cache", notes=notes)
    url, shard = shard_of(server, "0.tar")
    cache._remote.size(url)
    server.requests.clear()
    server.fail(500, seconds=2.0)
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(cache.fetch(url, shard)))
    thread.start()
    deadline = time.monotonic() + 10
    while not read_notes(notes) and time.monotonic() < deadline:
        time.sleep(0.02)
    (note,) = read_notes(notes)
    assert note["what"] == url
    assert "500" in str(note["reason"])
    thread.join()
    assert found[0].read_bytes() == (server.folder / "0.tar").read_bytes()
    assert read_notes(notes) == []
    # Every try asks for the piece and then for the size; the pauses are 0.25 s on average, and random.
    assert sum(request.status == 500 for request in server.requests) < 60


def test_only_the_content_counts(server: FaultyServer, cache: Cache) -> None:
    url, shard = shard_of(server, "0.tar")
    server.etag = "of something else"
    cache.fetch(url, shard)


def test_a_file_that_has_changed_is_fetched_once_more_and_refused(
    server: FaultyServer, cache: Cache, tmp_path: Path
) -> None:
    url, shard = shard_of(server, "0.tar")
    (server.folder / "0.tar").write_bytes(os.urandom(SIZE))
    with pytest.raises(Mismatch, match=r"0\.tar"):
        cache.fetch(url, shard)
    assert len(server.requests) == 20
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_a_file_of_another_size_is_refused(server: FaultyServer, cache: Cache, size: int) -> None:
    url, shard = shard_of(server, "0.tar")
    (server.folder / "0.tar").write_bytes(os.urandom(size))
    with pytest.raises(Mismatch):
        cache.fetch(url, shard)


def test_a_part_of_what_was_there_before_is_no_harm(server: FaultyServer, cache: Cache, tmp_path: Path) -> None:
    url, shard = shard_of(server, "0.tar")
    path = cache.fetch(url, shard)
    path.rename(path.with_name(f"{path.stem}-{SIZE}.part"))
    part = path.with_name(f"{path.stem}-{SIZE}.part")
    part.write_bytes(os.urandom(5 * PIECE))
    assert cache.fetch(url, shard).read_bytes() == (server.folder / "0.tar").read_bytes()
    part.write_bytes(os.urandom(2 * SIZE))
    path.unlink()
    assert cache.fetch(url, shard).read_bytes() == (server.folder / "0.tar").read_bytes()


def test_a_file_cut_short_in_the_cache_is_fetched_again(server: FaultyServer, cache: Cache) -> None:
    url, shard = shard_of(server, "0.tar")
    os.truncate(cache.fetch(url, shard), 1000)
    assert cache.holds(url, shard) is None
    assert cache.fetch(url, shard).read_bytes() == (server.folder / "0.tar").read_bytes()


def test_the_limit_holds_and_what_was_used_longest_ago_goes(server: FaultyServer, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    shards = [shard_of(server, name) for name in NAMES]
    for number, (url, shard) in enumerate(shards[:3]):
        os.utime(cache.fetch(url, shard), (number, number))
    cache.holds(*shards[0])
    for url, shard in shards[3:5]:
        cache.fetch(url, shard)
        assert len(files(tmp_path / "cache")) == 3
    assert [cache.holds(*shard) is not None for shard in shards] == [True, False, False, True, True, False]


def test_fetching_at_the_same_time_keeps_the_limit(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    largest = [0]
    append = cache._append_piece

    def watched(*arguments: Any) -> None:
        append(*arguments)
        kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        largest[0] = max(largest[0], sum(path.stat().st_size for path in kept if path.exists()))

    monkeypatch.setattr(cache, "_append_piece", watched)
    threads = [threading.Thread(target=cache.fetch, args=shard_of(server, name)) for name in NAMES[:3]]
    for name in NAMES[3:]:
        cache.fetch(*shard_of(server, name))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.holds(*shard_of(server, name)) for name in NAMES[:3])
    assert 0 < largest[0] <= 3 * SIZE


def test_a_limit_below_one_file_keeps_that_file(server: FaultyServer, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", limit_bytes=SIZE // 2)
    for name in NAMES[:2]:
        assert cache.fetch(*shard_of(server, name)).exists()
    assert files(tmp_path / "cache") == [".tar"]


def test_a_file_in_use_can_be_dropped(server: FaultyServer, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", limit_bytes=SIZE)
    path = cache.fetch(*shard_of(server, "0.tar"))
    with path.open("rb") as file:
        cache.fetch(*shard_of(server, "1.tar"))
        assert not path.exists()
        assert file.read() == (server.folder / "0.tar").read_bytes()


def test_parts_of_the_dead_go_and_those_being_written_stay(server: FaultyServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shards" / "ab"
    folder.mkdir(parents=True)
    dead, written = folder / f"abc-{SIZE}.part", folder / f"abd-{SIZE}.part"
    for part in (dead, written):
        part.write_bytes(b"some")
        os.utime(part, (1, 1))
    cache = open_cache(tmp_path / "cache", limit_bytes=2 * SIZE)
    with written.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.fetch(*shard_of(server, "0.tar"))
        assert (dead.exists(), written.exists()) == (False, True)
    cache.fetch(*shard_of(server, "1.tar"))
    assert not written.exists()
    assert files(tmp_path / "cache") == [".tar", ".tar"]


def test_a_part_that_is_dropped_while_it_is_waited_for(server: FaultyServer, cache: Cache) -> None:
    url, shard = shard_of(server, "0.tar")
    path = cache._path(url, shard)
    part = path.with_name(f"{path.stem}-{SIZE}.part")
    part.parent.mkdir(parents=True)
    thread = threading.Thread(target=cache.fetch, args=(url, shard))
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        part.unlink()
    thread.join()
    assert path.read_bytes() == (server.folder / "0.tar").read_bytes()
    assert len(server.requests) == 10


def test_two_processes_fetch_a_file_once(server: FaultyServer, tmp_path: Path) -> None:
    url, shard = shard_of(server, "0.tar")
    server.hang_next(4, 0.1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=killed, args=(tmp_path / "cache", url, shard)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(server.requests) == 10
    assert files(tmp_path / "cache") == [".tar"]


def test_a_process_forked_during_a_fetch_does_not_hold_it_up(server: FaultyServer, cache: Cache) -> None:
    url, shard = shard_of(server, "0.tar")
    sleeper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    append = cache._append_piece

    def dies(*arguments: Any) -> None:
        append(*arguments)
        sleeper.start()
        raise KeyboardInterrupt

    cache._append_piece = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(url, shard)
    cache._append_piece = append  # type: ignore[method-assign]
    try:
        assert cache.fetch(url, shard).read_bytes() == (server.folder / "0.tar").read_bytes()
    finally:
        sleeper.kill()
        sleeper.join()


def test_many_threads_fetch_every_file_once(server: FaultyServer, cache: Cache, tmp_path: Path) -> None:
    jobs = [shard_of(server, name) for name in NAMES] * 4
    threads = [threading.Thread(target=cache.fetch, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 10 * len(NAMES)
    assert files(tmp_path / "cache") == [".tar"] * len(NAMES)


def test_a_full_disk_is_waited_out(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two files and a half: what was used longest ago goes, and half a piece that was written stays right."""
    cache = open_cache(tmp_path / "cache")
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        left = SIZE * 5 // 2 - sum(path.stat().st_size for path in kept)
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:left])

    monkeypatch.setattr(os, "write", full)
    for number, name in enumerate(NAMES):
        path = cache.fetch(*shard_of(server, name))
        assert path.read_bytes() == (server.folder / name).read_bytes()
        os.utime(path, (number, number))
    assert files(tmp_path / "cache") == [".tar", ".tar"]
    assert cache.holds(*shard_of(server, NAMES[-2]))


def test_a_disk_that_others_have_filled(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    cache = open_cache(tmp_path / "cache", notes=notes)
    write, told = os.write, threading.Event()

    def full(descriptor: int, data: memoryview) -> int:
        if read_notes(notes):
            told.set()
        if not told.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    reasons: list[str] = []
    monkeypatch.setattr(
        outage, "_write_note", lambda *given, note=outage._write_note: (reasons.append(str(given[2])), note(*given))
    )
    assert cache.fetch(*shard_of(server, "0.tar")).read_bytes() == (server.folder / "0.tar").read_bytes()
    assert "No space left on device" in reasons[0]
    assert str(tmp_path / "cache") in reasons[0]


def test_a_cache_that_is_removed_while_it_is_used(server: FaultyServer, cache: Cache, tmp_path: Path) -> None:
    cache.fetch(*shard_of(server, "0.tar"))
    (tmp_path / "cache").rename(tmp_path / "away")
    cache.fetch(*shard_of(server, "0.tar"))
    assert files(tmp_path / "cache") == [".tar"]


def test_giving_up_ends_a_fetch(server: FaultyServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 1000.0)
    server.fail(500)
    ended = threading.Event()

    def fetch() -> None:
        with pytest.raises(OSError, match="500"):
            cache.fetch(*shard_of(server, "0.tar"))
        ended.set()

    threading.Thread(target=fetch, daemon=True).start()
    while len(server.requests) < 4:
        time.sleep(0.01)
    cache._patience.give_up()
    assert ended.wait(10.0)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache\.folder cannot be written"):
        open_cache(tmp_path / "file").check()
    open_cache(tmp_path / "folder").check()
