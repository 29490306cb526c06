"""Servers on 127.0.0.1 for tests and benchmarks of remote shards: one that fails when told to, nginx, far away, S3.

Each is a context manager, takes a free port and is gone when its block ends.
"""

import asyncio
import grp
import http.client
import logging
import mimetypes
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
_CHUNK = 256 * 1024
_IN_FLIGHT = 1024
"""The chunks a proxy holds per direction: enough for gigabytes per second at tens of milliseconds."""


@dataclass(frozen=True)
class Request:
    """A request as the server saw it, and the status it was (or, where it hung, would have been) answered with."""

    method: str
    path: str
    range: str | None
    status: int


class FaultyServer:
    """A folder over HTTP with faults that are switched on and off while it runs. Made by `faulty_http`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.etag: str | None = None
        """Sent for every file in place of its own ETag."""
        self.ignore_range = False
        """Answer a request for a range with 200 and the whole file."""
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._gone: set[str] = set()
        self._failing: tuple[int, float] = (500, float("-inf"))
        self._hangs: tuple[int, float, bool] = (0, 0.0, False)
        self._cuts = 0
        self._server = _Server(self)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"

    def fail(self, status: int = 500, seconds: float = float("inf")) -> None:
        """Answer every request with this status from now on, for so long."""
        self.fail_until(time.monotonic() + seconds, status)

    def fail_until(self, deadline: float, status: int = 500) -> None:
        """Answer every request with this status until `time.monotonic()` passes the deadline."""
        self._failing = (status, deadline)

    def hang_next(self, n: int, seconds: float, *, headers: bool = False) -> None:
        """Stall the next n requests for so long, before any byte or after the headers; then they go on as usual."""
        with self._lock:
            self._hangs = (n, seconds, headers)

    def cut_next(self, n: int) -> None:
        """Close the connection halfway through the next n bodies, whose Content-Length says nothing of it."""
        with self._lock:
            self._cuts = n

    def vanish(self, name: str) -> None:
        """Answer 404 for this file (its path in the folder)."""
        self._gone.add(name)

    def restore(self, name: str) -> None:
        """Undo `vanish`."""
        self._gone.discard(name)

    def heal(self) -> None:
        """Switch every fault off; the log stays."""
        with self._lock:
            self._hangs, self._cuts = (0, 0.0, False), 0
        self._failing = (500, float("-inf"))
        self.etag, self.ignore_range = None, False
        self._gone.clear()

    def _failure(self) -> int | None:
        status, deadline = self._failing
        return status if time.monotonic() < deadline else None

    def _take_hang(self) -> tuple[float, bool] | None:
        with self._lock:
            n, seconds, headers = self._hangs
            self._hangs = (max(n - 1, 0), seconds, headers)
        return (seconds, headers) if n else None

    def _take_cut(self) -> bool:
        with self._lock:
            n, self._cuts = self._cuts, max(self._cuts - 1, 0)
        return n > 0

    def _find(self, path: str) -> Path | None:
        name = urllib.parse.unquote(urllib.parse.urlsplit(path).path).lstrip("/")
        file = (self.folder / name).resolve()
        return file if name not in self._gone and file.is_relative_to(self.folder) and file.is_file() else None

    def _close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, faulty: FaultyServer) -> None:
        self.faulty = faulty
        super().__init__((LOOPBACK, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.faulty._lock:
            self.server.faulty._connections.add(self.connection)

    def finish(self) -> None:
        with self.server.faulty._lock:
            self.server.faulty._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are in `FaultyServer.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        faulty = self.server.faulty
        file = faulty._find(self.path)
        headers: dict[str, str] = {}
        status = faulty._failure() or (200 if file else 404)
        start, length = 0, 0
        if status == 200 and file:
            stat = file.stat()
            etag = f'"{faulty.etag}"' if faulty.etag is not None else f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
            headers = {"ETag": etag, "Accept-Ranges": "bytes"}
            headers["Content-Type"] = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            status, start, length = self._part(etag, stat.st_size)
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{stat.st_size}"
            elif status == 416:
                headers["Content-Range"] = f"bytes */{stat.st_size}"
        message = b"" if status in (200, 206) else f"{status} {HTTPStatus(status).phrase}\n".encode()
        headers["Content-Length"] = str(len(message) or length)
        faulty.requests.append(Request(self.command, self.path, self.headers["Range"], status))

        hang = faulty._take_hang()
        if hang and not hang[1]:
            faulty._closing.wait(hang[0])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if hang and hang[1]:
            faulty._closing.wait(hang[0])
        if self.command == "HEAD":
            return
        if message:
            self.wfile.write(message)
        elif file and length:
            if faulty._take_cut():
                length //= 2
                self.close_connection = True
            if length:
                with file.open("rb") as stream:
                    self.connection.sendfile(stream, start, length)

    def _part(self, etag: str, size: int) -> tuple[int, int, int]:
        """The status, first byte and length of what is asked of a file; several ranges at once are not understood."""
        if self.headers["If-Match"] not in (None, "*", etag):
            return 412, 0, 0
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "")
        if not match or not any(match.groups()):
            return 200, 0, size
        if self.server.faulty.ignore_range or self.headers["If-Range"] not in (None, etag):
            return 200, 0, size
        first, last = match.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        return (206, start, stop - start) if start < stop else (416, 0, 0)


@contextmanager
def faulty_http(folder: Path) -> Iterator[FaultyServer]:
    """Serve a folder from a thread of this process, with faults on demand."""
    server = FaultyServer(folder)
    thread = threading.Thread(target=server._server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._close()
        thread.join()


def have_nginx() -> bool:
    """Whether the nginx binary is installed."""
    return shutil.which("nginx") is not None


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serve a folder from nginx in processes of its own: the server to measure throughput with."""
    binary = shutil.which("nginx")
    if binary is None:
        raise FileNotFoundError("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        home, port = Path(name), _free_port()
        (home / "root").symlink_to(folder.resolve())  # a path with a "$" or a quote needs no escaping this way
        (home / "nginx.conf").write_text(_nginx_configuration(home, port))
        command = [binary, "-p", name, "-c", str(home / "nginx.conf"), "-e", str(home / "error.log")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            if not _answers(port, process):
                process.kill()
                log = (process.communicate()[1] or b"").decode(errors="replace")
                raise RuntimeError(f"nginx does not answer: {log}")
            yield f"http://{LOOPBACK}:{port}"
        finally:
            _stop(process)


def _nginx_configuration(home: Path, port: int) -> str:
    user = ""
    if os.geteuid() == 0:  # the workers of a root's nginx become another user, who may not read the folder
        user = f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n  ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
    return f"""{user}
daemon off;
worker_processes 2;
pid {home}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  {folders}
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  server {{
    listen {LOOPBACK}:{port} backlog=512;
    root {home}/root;
  }}
}}
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, process: "subprocess.Popen[bytes]", within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1.0)
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
            return True
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
        finally:
            connection.close()
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.communicate(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextmanager
def delaying_proxy(url: str, delay_s: float) -> Iterator[str]:
    """The same URL, from request to first byte `delay_s` further away: half there, half back, in a process of its own.

    Bytes wait side by side, so throughput stays that of the server; opening a connection costs nothing extra.
    """
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    command = [sys.executable, "-P", __file__, str(parts.hostname), str(port), str(delay_s / 2)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy did not start")
        yield urllib.parse.urlunsplit(parts._replace(netloc=f"{LOOPBACK}:{int(line)}"))
    finally:
        _stop(process)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass everything on, each chunk `delay_s` after it came in."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

    async def receive() -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = await reader.read(_CHUNK)
            except ConnectionError:
                chunk = b""
            await queue.put((loop.time() + delay_s, chunk))

    receiving = asyncio.create_task(receive())
    try:
        while True:
            due, chunk = await queue.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()
    except OSError:  # the far end is gone
        writer.close()
    finally:
        receiving.cancel()


async def _proxy(host: str, port: int, delay_s: float) -> None:
    """Carry connections to the host until standard input ends, which it does when the parent process is gone."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port, limit=_CHUNK)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_carry(reader, far_writer, delay_s), _carry(far_reader, writer, delay_s))
        writer.close()
        far_writer.close()

    server = await asyncio.start_server(connect, LOOPBACK, 0, limit=_CHUNK, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True)
class S3:
    """An S3 server with one bucket. Made by `s3_server`."""

    endpoint: str
    bucket: str
    environment: dict[str, str] = field(repr=False)
    """What s3fs and boto need in `os.environ` to talk to this server."""

    def client(self) -> Any:
        """A boto3 client of this server, whatever the environment says."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}),
        )

    def upload(self, folder: Path, prefix: str = "shards") -> str:
        """Put the files of a folder under a prefix; the s3:// URL of that."""
        client = self.client()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(
                Bucket=self.bucket, Key=f"{prefix}/{file.relative_to(folder).as_posix()}", Body=file.read_bytes()
            )
        return f"s3://{self.bucket}/{prefix}"


@contextmanager
def s3_server() -> Iterator[S3]:
    """An empty bucket on a moto server in a thread of this process."""
    from moto.server import ThreadedMotoServer

    werkzeug = logging.getLogger("werkzeug")
    level = werkzeug.level
    werkzeug.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        endpoint = f"http://{LOOPBACK}:{port}"
        environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }
        s3 = S3(endpoint, f"bucket-{port}", environment)  # all moto servers of a process share their buckets
        client = s3.client()
        client.create_bucket(Bucket=s3.bucket)
        yield s3
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket):
            for item in page.get("Contents", ()):
                client.delete_object(Bucket=s3.bucket, Key=item["Key"])
        client.delete_bucket(Bucket=s3.bucket)
    finally:
        server.stop()
        werkzeug.setLevel(level)


if __name__ == "__main__":
    asyncio.run(_proxy(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
