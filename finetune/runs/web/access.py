"""Who may look: under which names the server is asked for, and what is shown without a token."""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from finetune.errors import UserError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 (compared with, not bound to)
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """What a request has to bring along.

    A page of somebody else's whose name has been made to lead here (DNS rebinding) asks under its own name, which is
    refused. An address is no such name, so that any is taken where the server listens on all.
    """

    names: frozenset[str]
    """What the Host header may say, without the port."""
    any_address: bool
    token: str | None

    @classmethod
    def to(cls, host: str, token: str | None, more_names: list[str]) -> "Access":
        """The access to a server that listens on a host, known by other names too.

        Raises:
            UserError: others than this machine could look without a token, or could guess it.
        """
        loopback = host in LOOPBACK_NAMES or _is_loopback(host)
        if not token and not loopback:
            raise UserError(
                f"on {host or 'all addresses'} others can reach it: set LONGHAUL_TOKEN to a long random text, or leave "
                "out --host"
            )
        if token and len(token) < SHORTEST_TOKEN:
            raise UserError(f"the token has {len(token)} letters: use at least {SHORTEST_TOKEN} random ones")
        names = {name.lower() for name in (host, *more_names, *(LOOPBACK_NAMES if loopback else ()))}
        return cls(frozenset(names - EVERYWHERE), host in EVERYWHERE, token or None)

    def knows(self, host: str | None) -> bool:
        """Whether a Host header names this server."""
        name = _without_port(host or "").lower()
        return name in self.names or (self.any_address and (name in LOOPBACK_NAMES or _is_address(name)))

    def admits(self, authorization: str | None, cookies: str | None) -> bool:
        """Whether a request with these headers may see everything."""
        if self.token is None:
            return True
        kind, _, given = (authorization or "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        name, value = self._cookie
        try:
            sent = SimpleCookie(cookies or "").get(name)
        except CookieError:
            return False
        return sent is not None and _same(sent.value, value)

    def is_token(self, given: str) -> bool:
        """Whether this is the token; compared in a time that tells nothing."""
        return self.token is not None and _same(given, self.token)

    @property
    def cookie(self) -> str:
        """A Set-Cookie header by which a browser that had the token is known from then on."""
        name, value = self._cookie
        return f"{name}={value}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict"

    @property
    def _cookie(self) -> tuple[str, str]:
        """Name and value: not the token itself, which the browser need not keep."""
        digest = hmac.new((self.token or "").encode(), b"longhaul's page", hashlib.sha256).hexdigest()
        return f"longhaul-{digest[:8]}", digest[8:]


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


def _without_port(host: str) -> str:
    """The name in a Host header; [::1]:80 is ::1."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
