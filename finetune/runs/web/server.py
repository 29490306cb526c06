"""The server: HTTP, and who may ask. What is answered comes from the site."""

import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune.runs.web.access import Access
from finetune.runs.web.site import Answer, Site

CONNECTIONS = 32
"""At a time; what comes beyond is closed at once."""
SLOWEST_S = 10.0
"""For a request to arrive, and for each piece of the answer to be taken."""
PIECE = 64 * 1024
OPEN = frozenset({"/healthz", "/style.css"})
"""What is shown without a token."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Answers each request in a thread of its own. It writes no log, so none can hold a token."""

    daemon_threads = True
    request_queue_size = 128
    """Connections that may wait to be taken; of more at once the kernel drops some, which try again after seconds."""

    def __init__(self, host: str, port: int, site: Site, access: Access) -> None:
        """Listen. Raises OSError where that is not possible."""
        self.site, self.access = site, access
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Take the address, without asking the network for a name of it."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer beside the others, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or was too slow, is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = SLOWEST_S
    server_version, sys_version = "longhaul", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"

    def handle(self) -> None:
        """Answer, if the request comes in time: a client may send a letter now and then for ever."""
        self._late = threading.Timer(SLOWEST_S, self._hang_up)
        self._late.daemon = True
        self._late.start()
        try:
            super().handle()
        finally:
            self._late.cancel()

    def parse_request(self) -> bool:
        """Read the request; whether it is to be answered by its method."""
        if not super().parse_request():
            return False
        self._late.cancel()
        if self.command not in ("GET", "HEAD"):
            self._send(Answer.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD"))
            return False
        return True

    def do_GET(self) -> None:
        """Answer a request."""
        self._send(self._answer())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line would hold what was asked for, and that may be a token."""

    def _answer(self) -> Answer:
        access, site = self.server.access, self.server.site
        if not access.knows(self.headers.get("Host")):
            return Answer.text(HTTPStatus.MISDIRECTED_REQUEST, "this name is not known here: start with --allow-host")
        try:
            url = urlsplit(self.path)
        except ValueError:  # of an IPv6 address in it
            return Answer.text(HTTPStatus.BAD_REQUEST, "this is no address")
        admitted = access.admits(self.headers.get("Authorization"), self.headers.get("Cookie"))
        if access.is_token(parse_qs(url.query).get("token", [""])[-1]):
            return Answer.text(
                HTTPStatus.SEE_OTHER, "", Location=f"./{url.path.rpartition('/')[2]}", Set_Cookie=access.cookie
            )
        if not admitted and url.path not in OPEN:
            return site.closed(url.path)
        return site.answer(url.path, told=admitted)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {**HEADERS, "Cache-Control": "no-store", "Content-Type": answer.kind, **answer.headers}
        for name, value in (headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(answer.body), PIECE):
                self.wfile.write(answer.body[start : start + PIECE])

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
