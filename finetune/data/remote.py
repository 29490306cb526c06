"""Files that lie elsewhere, read by ranges of bytes, through fsspec: http(s), S3 and whatever else it knows."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers
import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.http import HTTPFileSystem

from finetune.data.outage import Lasting
from finetune.errors import UserError

HTTP = {"http", "https"}
S3 = {"s3", "s3a"}
# Of a server or of the way to it; they may pass, and are made OSErrors.
NETWORK_FAULTS = (
    aiohttp.ClientError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    botocore.parsers.ResponseParserError,
    fsspec.exceptions.FSTimeoutError,
)
DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


class Mismatch(Exception):
    """A remote file is not the one that was indexed; the message is its URL."""


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

    def read_indexed(self, url: str, offset: int, size: int, file_size: int) -> bytes:
        """Some bytes of a file that had `file_size` when it was indexed.

        Raises:
            Mismatch: they cannot be read, as the file has another size now; that never passes.
            OSError: they cannot be read for another reason.
        """
        try:
            return self.read(url, offset, size)
        except OSError:
            if self.size(url) != file_size:
                raise Mismatch(url) from None
            raise

    def find(self, pattern: str) -> list[str]:
        """The URLs that a glob matches, sorted. Raises OSError."""
        with _network_faults(pattern):
            filesystem = self._filesystem(pattern)
            return sorted(filesystem.unstrip_protocol(path) for path in filesystem.glob(pattern))

    def put(self, path: Path, url: str) -> None:
        """Copy a local file there. Raises OSError."""
        with _network_faults(url):
            filesystem = self._filesystem(url)
            if url.partition("://")[0] not in S3:  # which has no folders; s3fs would make a bucket that is missing
                filesystem.makedirs(url.rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(path), url)

    def remove(self, url: str) -> None:
        """Remove a file, or a folder with all that it holds. Raises OSError."""
        with _network_faults(url):
            self._filesystem(url).rm(url, recursive=True)

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
            self._opened[key] = _open_filesystem(protocol, self._timeout_s)
        return self._opened[key]


class _Http(HTTPFileSystem):  # type: ignore[misc]
    """Takes nothing but the range that was asked for: fsspec's own reads the whole file, however large, from a server
    that does not know ranges, and tells any fault as a missing file."""

    async def _cat_file(self, url: str, start: int, end: int) -> bytes:
        async with self._ranged(url, start, end) as answer:
            return await answer.read()

    async def _info(self, url: str) -> dict[str, Any]:
        async with self._ranged(url, 0, 1) as answer:
            size = answer.headers["Content-Range"].rpartition("/")[2]
            named = {"ETag": answer.headers.get("ETag"), "LastModified": answer.headers.get("Last-Modified")}
            known = {key: value for key, value in named.items() if value is not None}
            return {"name": url, "type": "file", "size": int(size) if size.isdigit() else None, **known}

    @asynccontextmanager
    async def _ranged(self, url: str, start: int, end: int) -> AsyncIterator[aiohttp.ClientResponse]:
        session = await self.set_session()
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with session.get(self.encode_url(url), headers=headers) as answer:
            self._raise_not_found_for_status(answer, url)
            came = answer.headers.get("Content-Range", "the whole file")
            if not came.startswith(f"bytes {start}-{end - 1}/"):
                raise Lasting(
                    f"{url}: bytes {start}-{end - 1} were asked for, and the server answers with {came}; it has to "
                    "know range requests, as nginx and S3 do"
                )
            yield answer


@contextmanager
def _network_faults(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: there is no such file") from error
    except NETWORK_FAULTS as error:
        denied = isinstance(error, aiohttp.ClientResponseError) and error.status in DENIED
        kind = PermissionError if denied else OSError
        raise kind(f"{url}: {type(error).__name__}: {error}") from error


def _open_filesystem(protocol: str, timeout_s: float) -> AbstractFileSystem:
    """A file system of its own for a protocol; retries are left to `Patience`.

    Raises:
        UserError: the protocol is not known, or a package is missing for it.
    """
    if protocol in HTTP:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return _Http(skip_instance_cache=True, client_kwargs={"timeout": timeout})
    if protocol in S3:
        retries = {"total_max_attempts": 1, "mode": "standard"}
        client = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": retries}
        s3 = fsspec.filesystem(protocol, skip_instance_cache=True, config_kwargs=client, use_listings_cache=False)
        s3.retries = 1
        return s3
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol}:// cannot be read ({error}): check the address, or install what it needs"
        ) from error
