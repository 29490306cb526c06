"""Ranges of remote files: the right bytes or an OSError, whatever the server does."""

import os
import pickle
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from finetune.data.remote import Mismatch, Remote, is_remote
from finetune.errors import UserError
from tests.servers import FaultyServer, faulty_http, have_nginx, nginx, s3_server

DATA = os.urandom(500_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "a b.tar").write_bytes(DATA)
    with faulty_http(tmp_path) as server:
        yield server


@pytest.fixture
def url(server: FaultyServer) -> str:
    return f"{server.url}/a b.tar"


@pytest.fixture
def remote() -> Remote:
    return Remote(timeout_s=0.3)


def test_locations() -> None:
    assert is_remote("https://server/a.tar")
    assert is_remote("s3://bucket/a.tar")
    assert not is_remote("/folder/a.tar")
    assert not is_remote("folder/a:b.tar")


def test_bytes_and_size(remote: Remote, url: str) -> None:
    assert remote.size(url) == len(DATA)
    assert remote.read(url, 0, 10) == DATA[:10]
    assert remote.read(url, 1000, 400_000) == DATA[1000:401_000]
    assert remote.read(url, len(DATA) - 1, 1) == DATA[-1:]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails(server: FaultyServer, remote: Remote, url: str, status: int) -> None:
    server.fail(status)
    for ask in (lambda: remote.read(url, 0, 10), lambda: remote.size(url)):
        with pytest.raises(OSError, match=f"{status}") as raised:
            ask()
        assert not isinstance(raised.value, FileNotFoundError | PermissionError)
    server.heal()
    assert remote.read(url, 0, 10) == DATA[:10]


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_is_denied(server: FaultyServer, remote: Remote, url: str, status: int) -> None:
    server.fail(status)
    with pytest.raises(PermissionError, match=f"{status}"):
        remote.size(url)


def test_a_file_that_is_missing(server: FaultyServer, remote: Remote, url: str) -> None:
    server.vanish("a b.tar")
    for ask in (lambda: remote.read(url, 0, 10), lambda: remote.size(url)):
        with pytest.raises(FileNotFoundError):
            ask()


@pytest.mark.parametrize("headers", [False, True])
def test_a_server_that_hangs(server: FaultyServer, remote: Remote, url: str, headers: bool) -> None:
    server.hang_next(1, 1000.0, headers=headers)
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"a b\.tar: FSTimeoutError"):
        remote.read(url, 0, 10)
    assert time.monotonic() - begun < 10.0
    assert remote.read(url, 0, 10) == DATA[:10]


def test_a_body_cut_short(server: FaultyServer, remote: Remote, url: str) -> None:
    server.cut_next(1)
    with pytest.raises(OSError, match="ClientPayloadError"):
        remote.read(url, 0, 400_000)
    assert remote.read(url, 0, 400_000) == DATA[:400_000]


def test_nobody_answers(server: FaultyServer, remote: Remote) -> None:
    with pytest.raises(OSError, match="ClientConnect"):
        remote.read("http://127.0.0.1:9/a.tar", 0, 10)


def test_a_server_that_does_not_know_ranges(server: FaultyServer, remote: Remote, tmp_path: Path) -> None:
    """The rest of a huge file is never read."""
    size = 8 * 2**30
    with (tmp_path / "huge.tar").open("wb") as file:
        file.truncate(size)
    server.ignore_range = True
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    for ask in (lambda: remote.read(f"{server.url}/huge.tar", 512, 10), lambda: remote.size(f"{server.url}/huge.tar")):
        with pytest.raises(OSError, match="asked for, and the server answers with the whole file"):
            ask()
    assert time.monotonic() - begun < 10.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200 * 1024  # KiB
    server.ignore_range = False
    assert remote.size(f"{server.url}/huge.tar") == size


def test_more_than_there_is(remote: Remote, url: str) -> None:
    with pytest.raises(OSError, match="were asked for"):
        remote.read(url, len(DATA) - 5, 10)
    with pytest.raises(OSError, match="416"):
        remote.read(url, len(DATA), 10)


def test_a_file_of_another_size_is_told_from_a_fault(server: FaultyServer, remote: Remote, url: str) -> None:
    assert remote.read_indexed(url, 5, 10, len(DATA)) == DATA[5:15]
    with pytest.raises(Mismatch, match=r"a b\.tar"):
        remote.read_indexed(url, len(DATA), 10, len(DATA) + 10)
    server.fail(500)
    with pytest.raises(OSError, match="500"):
        remote.read_indexed(url, 5, 10, len(DATA))


def test_the_version_changes_with_the_file(server: FaultyServer, remote: Remote, url: str) -> None:
    before = remote.version(url)
    assert remote.version(url) == before
    path = server.folder / "a b.tar"
    path.write_bytes(DATA[::-1])
    os.utime(path, (1, 1))
    assert remote.version(url) != before


@pytest.mark.skipif(not have_nginx(), reason="nginx is not installed")
def test_nginx(tmp_path: Path, remote: Remote) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    with nginx(tmp_path) as url:
        assert remote.size(f"{url}/a.tar") == len(DATA)
        assert remote.read(f"{url}/a.tar", 1000, 100_000) == DATA[1000:101_000]
        assert "LastModified" in remote.version(f"{url}/a.tar")


def test_a_file_is_put_and_removed(tmp_path: Path, remote: Remote) -> None:
    (tmp_path / "a").write_bytes(DATA)
    url = f"file://{tmp_path}/folder/deeper"
    remote.put(tmp_path / "a", f"{url}/b")
    assert remote.read(f"{url}/b", 0, len(DATA)) == DATA
    remote.remove(url)
    assert not (tmp_path / "folder" / "deeper").exists()
    for ask in (lambda: remote.remove(f"{url}/b"), lambda: remote.put(tmp_path / "missing", f"{url}/b")):
        with pytest.raises(FileNotFoundError):
            ask()


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    (tmp_path / "b.tar").write_bytes(DATA)
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url, remote = s3.upload(tmp_path), Remote(timeout_s=5.0)
        assert remote.find(f"{url}/*.tar") == [f"{url}/a.tar", f"{url}/b.tar"]
        assert remote.size(f"{url}/a.tar") == len(DATA)
        assert remote.read(f"{url}/a.tar", 1000, 100_000) == DATA[1000:101_000]
        remote.put(tmp_path / "a.tar", f"{url}/folder/c.tar")
        assert remote.read(f"{url}/folder/c.tar", 0, len(DATA)) == DATA
        remote.remove(f"{url}/folder")
        assert remote.find(f"{url}/*") == [f"{url}/a.tar", f"{url}/b.tar"]
        with pytest.raises(OSError, match="bucket"):
            remote.put(tmp_path / "a.tar", "s3://no-such-bucket/a.tar")
        with pytest.raises(FileNotFoundError):
            remote.read(f"{url}/none.tar", 0, 10)
        with pytest.raises(OSError, match="were asked for"):
            remote.read(f"{url}/a.tar", len(DATA) - 5, 10)
        with pytest.raises(Mismatch):
            remote.read_indexed(f"{url}/a.tar", len(DATA), 10, len(DATA) + 10)
        version = remote.version(f"{url}/a.tar")
        (tmp_path / "a.tar").write_bytes(DATA[::-1])
        s3.upload(tmp_path)
        assert remote.version(f"{url}/a.tar") != version
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(OSError, match="EndpointConnectionError"):
            Remote(timeout_s=5.0).read(f"{url}/a.tar", 0, 10)


def test_any_other_file_system_of_fsspec(tmp_path: Path, remote: Remote) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    assert remote.read(f"file://{tmp_path}/a.tar", 10, 10) == DATA[10:20]
    assert remote.size(f"file://{tmp_path}/a.tar") == len(DATA)


def test_a_protocol_that_nobody_knows(remote: Remote) -> None:
    with pytest.raises(UserError, match="nonsense:// cannot be read"):
        remote.read("nonsense://bucket/a.tar", 0, 10)


def test_a_copy_opens_its_own_connections(remote: Remote, url: str) -> None:
    remote.read(url, 0, 10)
    again = pickle.loads(pickle.dumps(remote))  # noqa: S301 (its own bytes)
    assert again._opened == {}
    assert again.read(url, 0, 10) == DATA[:10]


class Ranges(Dataset[bytes]):
    """Ten bytes at every thousandth."""

    def __init__(self, remote: Remote, url: str) -> None:
        self._remote = remote
        self._url = url

    def __len__(self) -> int:
        return 40

    def __getitem__(self, item: int) -> bytes:
        return self._remote.read(self._url, 1000 * item, 10)


def test_forked_workers_read_while_their_parent_does(remote: Remote, url: str) -> None:
    """fsspec's own thread and its connections do not survive a fork."""
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            assert remote.read(url, 7, 100) == DATA[7:107]

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        loader = DataLoader(
            Ranges(remote, url), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        found = list(loader)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert found == [DATA[1000 * i : 1000 * i + 10] for i in range(40)]
