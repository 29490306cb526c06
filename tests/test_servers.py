"""The servers that tests of remote shards lean on do what they say."""

import asyncio
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import pytest
from fsspec.exceptions import FSTimeoutError

from tests.servers import FaultyServer, delaying_proxy, faulty_http, have_nginx, nginx, s3_server

DATA = os.urandom(1_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "a.tar").write_bytes(DATA)
    (tmp_path / "part" / "b c.json").write_bytes(b"[]")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with faulty_http(folder) as server:
        yield server


def filesystem(timeout_s: float = 20.0) -> Any:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return fsspec.filesystem("http", skip_instance_cache=True, client_kwargs={"timeout": timeout})


def open_url(url: str, method: str = "GET", **headers: str) -> Any:
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)


def first_byte_s(url: str) -> float:
    start = time.monotonic()
    with open_url(url, Range="bytes=0-9") as answer:
        assert answer.read() == DATA[:10]
    return time.monotonic() - start


def test_ranges_and_the_log(server: FaultyServer) -> None:
    fs, url = filesystem(), f"{server.url}/a.tar"
    assert fs.cat_file(url, 100, 300) == DATA[100:300]
    assert fs.cat_file(url, 999_990, 1_000_100) == DATA[-10:]
    assert fs.cat_file(url, -10) == DATA[-10:]
    assert fs.cat_file(url) == DATA
    assert fs.info(url)["size"] == len(DATA)
    log = [(request.method, request.range, request.status) for request in server.requests]
    assert log == [
        ("GET", "bytes=100-299", 206),
        ("GET", "bytes=999990-1000099", 206),
        ("GET", "bytes=-10", 206),
        ("GET", None, 200),
        ("HEAD", None, 200),
    ]
    assert {request.path for request in server.requests} == {"/a.tar"}
    with pytest.raises(aiohttp.ClientResponseError, match="416"):
        fs.cat_file(url, 2_000_000, 2_000_100)
    assert fs.cat_file(f"{server.url}/part/{urllib.parse.quote('b c.json')}") == b"[]"


def test_headers(server: FaultyServer) -> None:
    url = f"{server.url}/a.tar"
    with open_url(url, Range="bytes=10-19") as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes 10-19/{len(DATA)}")
        etag = answer.headers["ETag"]
    with open_url(url, "HEAD") as answer:
        assert (answer.headers["Accept-Ranges"], answer.headers["ETag"]) == ("bytes", etag)
        assert answer.read() == b""
    with open_url(url, Range="bytes=10-19", If_Range=etag) as answer:
        assert answer.status == 206
    server.etag = "wrong"
    with open_url(url, Range="bytes=10-19", If_Range=etag) as answer:
        assert (answer.status, answer.headers["ETag"]) == (200, '"wrong"')
    with pytest.raises(urllib.error.HTTPError, match="412"):
        open_url(url, If_Match=etag)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        open_url(f"{server.url}/%2e%2e/{server.folder.name}/../../etc/passwd")


def test_failing_for_a_while(server: FaultyServer) -> None:
    fs, url = filesystem(), f"{server.url}/a.tar"
    server.fail(503)
    for _ in range(2):
        with pytest.raises(aiohttp.ClientResponseError, match="503"):
            fs.cat_file(url, 0, 10)
    deadline = time.monotonic() + 0.3
    server.fail_until(deadline)
    with pytest.raises(aiohttp.ClientResponseError, match="500"):
        fs.cat_file(url, 0, 10)
    time.sleep(max(deadline - time.monotonic(), 0))
    assert fs.cat_file(url, 0, 10) == DATA[:10]


@pytest.mark.parametrize("headers", [False, True])
def test_hanging(server: FaultyServer, headers: bool) -> None:
    fs, url = filesystem(timeout_s=0.3), f"{server.url}/a.tar"
    server.hang_next(1, 1000.0, headers=headers)
    with pytest.raises(FSTimeoutError):
        fs.cat_file(url, 0, 10)
    assert fs.cat_file(url, 0, 10) == DATA[:10]
    server.hang_next(1, 0.1, headers=headers)
    assert first_byte_s(url) >= 0.1


def test_bodies_cut_short(server: FaultyServer) -> None:
    fs, url = filesystem(), f"{server.url}/a.tar"
    server.cut_next(2)
    fs.info(url)
    for end in (10, 900_000):
        with pytest.raises(aiohttp.ClientPayloadError, match=f"received {end // 2} of {end} bytes"):
            fs.cat_file(url, 0, end)
    assert fs.cat_file(url, 0, 900_000) == DATA[:900_000]


def test_files_vanish_and_ranges_are_ignored(server: FaultyServer) -> None:
    fs, url = filesystem(), f"{server.url}/a.tar"
    server.vanish("a.tar")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(url, 0, 10)
    server.restore("a.tar")
    server.ignore_range = True
    assert fs.cat_file(url, 10, 20) == DATA  # fsspec takes a whole file for a part of it
    server.heal()
    assert fs.cat_file(url, 10, 20) == DATA[10:20]


def test_nothing_is_said_and_nothing_stays(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with faulty_http(folder) as server:
        server.hang_next(1, 1000.0)
        with pytest.raises(TimeoutError):
            filesystem(timeout_s=0.1).cat_file(f"{server.url}/a.tar")
    with pytest.raises(urllib.error.URLError, match="refused"):
        open_url(f"{server.url}/a.tar")
    deadline = time.monotonic() + 10
    while threading.active_count() > threads + 1 and time.monotonic() < deadline:  # fsspec's own thread stays
        time.sleep(0.01)
    assert threading.active_count() <= threads + 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not have_nginx(), reason="nginx is not installed")
def test_nginx(folder: Path) -> None:
    odd = folder / "it's $odd"
    odd.mkdir()
    (folder / "a.tar").rename(odd / "a.tar")
    with nginx(odd) as url:
        fs = filesystem()
        assert fs.cat_file(f"{url}/a.tar", 100, 300) == DATA[100:300]
        assert fs.info(f"{url}/a.tar")["ETag"]
        with pytest.raises(FileNotFoundError):
            fs.cat_file(f"{url}/none.tar", 0, 10)
    with pytest.raises(urllib.error.URLError, match="refused"):
        open_url(f"{url}/a.tar")


def test_delay(server: FaultyServer) -> None:
    url = f"{server.url}/a.tar"
    with delaying_proxy(url, 0.2) as far:
        assert urllib.parse.urlsplit(far).path == "/a.tar"
        assert 0.2 <= first_byte_s(far) < 2.0
        fs = filesystem()
        start = time.monotonic()
        assert fs.cat_file(far) == DATA  # many chunks, one delay
        assert 0.2 <= time.monotonic() - start < 2.0
        start = time.monotonic()
        assert fs.cat_ranges([far] * 20, list(range(20)), [i + 10 for i in range(20)])[7] == DATA[7:17]
        assert time.monotonic() - start < 2.0
        server.cut_next(1)
        with pytest.raises(aiohttp.ClientPayloadError):
            fs.cat_file(far, 0, 10)
    with pytest.raises(urllib.error.URLError, match="refused"):
        open_url(far)


def test_delay_leaves_throughput_alone(tmp_path: Path) -> None:
    size = 200_000_000
    with (tmp_path / "big").open("wb") as stream:
        stream.truncate(size)

    async def read(url: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return sum([len(chunk) async for chunk in answer.content.iter_any()])

    with faulty_http(tmp_path) as server, delaying_proxy(f"{server.url}/big", 0.1) as far:
        start = time.monotonic()
        assert asyncio.run(read(far)) == size
        assert time.monotonic() - start < 10.0  # chunk after chunk it would be 38 s at best


def test_s3(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = s3.upload(folder, "some/where")
        assert url == f"s3://{s3.bucket}/some/where"
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        assert fs.cat_file(f"{url}/a.tar", start=100, end=300) == DATA[100:300]
        assert fs.cat_file(f"{url}/part/b c.json") == b"[]"
        assert fs.info(f"{url}/a.tar")["size"] == len(DATA)
        with pytest.raises(FileNotFoundError):
            fs.cat_file(f"{url}/none.tar", start=0, end=10)
    assert capfd.readouterr() == ("", "")
