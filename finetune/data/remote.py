"""Reading files that lie elsewhere, by ranges of bytes, through fsspec: http(s), S3 and whatever else it knows."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec
from fsspec import AbstractFileSystem

S3 = {"s3", "s3a"}
# Of a server or of the way to it; they may pass, and are made OSErrors of their own kind.
NETWORK_FAULTS = (
    aiohttp.ClientError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    fsspec.exceptions.FSTimeoutError,
)


def is_remote(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in location


class Remote:
    """Remote files. Every process that uses a copy opens connections of its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._opened: dict[tuple[int, str], AbstractFileSystem] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}

    def size(self, url: str) -> int:
        """Bytes of a file. Raises OSError."""
        return int(self._info(url)["size"])

    def version(self, url: str) -> str:
        """What changes when the file does, as far as the server tells. Raises OSError."""
        info = self._info(url)
        return json.dumps({key: str(info[key]) for key in ("size", "ETag", "LastModified") if key in info})

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Some bytes of a file. Raises OSError, also where the server sends another number of them."""
        with _network_faults(url):
            data: bytes = self._filesystem(url).cat_file(url, start=offset, end=offset + size)
        if len(data) != size:
            raise OSError(f"{url}: {len(data):,} bytes came where {size:,} at {offset:,} were asked for")
        return data

    def find(self, pattern: str) -> list[str]:
        """The URLs that a glob matches, sorted. Raises OSError."""
        with _network_faults(pattern):
            filesystem = self._filesystem(pattern)
            return sorted(filesystem.unstrip_protocol(path) for path in filesystem.glob(pattern))

    def _info(self, url: str) -> dict[str, Any]:
        with _network_faults(url):
            filesystem = self._filesystem(url)
            filesystem.invalidate_cache()
            info: dict[str, Any] = filesystem.info(url)
        if info.get("size") is None:
            raise OSError(f"{url}: the server does not say how large it is")
        return info

    def _filesystem(self, url: str) -> AbstractFileSystem:
        protocol = url.partition("://")[0]
        key = os.getpid(), protocol
        if key not in self._opened:
            options = _options(protocol, self._timeout_s)
            filesystem = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
            if protocol in S3:
                filesystem.retries = 1
            self._opened[key] = filesystem
        return self._opened[key]


@contextmanager
def _network_faults(url: str) -> Iterator[None]:
    try:
        yield
    except NETWORK_FAULTS as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


def _options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """How fsspec is told the timeout; retries are left to `Patience`."""
    if protocol in {"http", "https"}:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in S3:
        retries = {"total_max_attempts": 1, "mode": "standard"}
        client = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": retries}
        return {"config_kwargs": client, "use_listings_cache": False}
    return {}
