"""Servers on 127.0.0.1 that take alerts: HTTP for ntfy, Discord and Slack, and SMTP."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

LOOPBACK = "127.0.0.1"
DEADLINE_S = 60.0


@dataclass
class Receiver:
    """What an HTTP server has been sent, and how it answers."""

    port: int = 0
    status: int = 200
    hangs: threading.Event = field(default_factory=threading.Event)
    """Set: no answer is ever given."""
    closing: threading.Event = field(default_factory=threading.Event)
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and JSON of each, those that were not answered with 200 among them."""
    taken: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Those that were answered with 200."""

    @property
    def ntfy(self) -> str:
        """An address for the format of ntfy."""
        return f"ntfy://{LOOPBACK}:{self.port}/topic"

    @property
    def titles(self) -> list[str]:
        """The titles of what was taken in ntfy's format."""
        return [post["title"] for _, post in self.taken]


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        post = (self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.receiver.posts.append(post)
        if self.receiver.hangs.is_set():
            self.receiver.closing.wait()
            return
        if self.receiver.status == 200:
            self.receiver.taken.append(post)
        self.send_response(self.receiver.status)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def http_receiver() -> Iterator[Receiver]:
    """A server that takes what is posted to it."""
    receiver = Receiver()
    server = ThreadingHTTPServer((LOOPBACK, 0), type("Handler", (_Handler,), {"receiver": receiver}))
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Mailbox:
    """What an SMTP server has been sent; aiosmtpd calls `handle_DATA`."""

    def __init__(self) -> None:
        self.port = 0
        self.mails: list[EmailMessage] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Take a mail."""
        assert isinstance(envelope.content, bytes)
        mail = BytesParser(policy=default).parsebytes(envelope.content)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    def login(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _way: str, given: LoginPassword
    ) -> AuthResult:
        """Take one user with one password."""
        self.logins.append((given.login, given.password))
        return AuthResult(success=(given.login, given.password) == (b"fox", b"hunter2"))


@contextmanager
def smtp_receiver(*, login: bool) -> Iterator[Mailbox]:
    """A mail server, which asks for a password or not."""
    mailbox = Mailbox()
    rules: dict[str, Any] = {"authenticator": mailbox.login, "auth_required": True, "auth_require_tls": False}
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        mailbox.port = probe.getsockname()[1]
    controller = Controller(mailbox, hostname=LOOPBACK, port=mailbox.port, **(rules if login else {}))
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


def wait_for(what: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
