"""Where alerts are sent: addresses that Apprise understands. They are secrets, and nothing here ever shows one."""

import logging
import re
from collections.abc import Sequence

from apprise import Apprise, AppriseAsset

from finetune.errors import UserError
from finetune.monitor.alerts.rules import Alert

LONGEST_TEXT = 1500
"""In characters; Discord refuses more than 2,000."""
TIMEOUT_S = 60.0
"""An answer has to have come by then."""
APART_S = 1.0
"""Between two alerts to one address."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,15}(?=://)", re.IGNORECASE)
_STATUS = re.compile(r"error=(\d{3})\b")
"""In what Apprise logs of an answer."""
_MENTION = re.compile(r"(?<!\w)[@!](?=\w)")
"""What chats take for a call to somebody or to all; texts may come from servers and from names of samples."""


class NotDelivered(Exception):
    """A place has not taken an alert; the message is the reason, without anything of the address."""


class Place:
    """One address."""

    def __init__(self, number: int, url: str) -> None:
        """Take an address apart.

        Args:
            number: its place among all that are not empty, from 1.

        Raises:
            UserError: Apprise does not understand it.
        """
        self._apprise = Apprise(
            asset=AppriseAsset(app_id="Longhaul", app_desc="Longhaul", app_url="", image_url_mask="")
        )
        if not self._apprise.add(url.strip()):
            scheme = _SCHEME.match(url.strip())
            raise UserError(
                f"address {number} for alerts ({scheme.group() if scheme else 'without a scheme'}), of those in "
                "monitor.alerts.to or --to, is not understood: docs/alerts.md says how each is written"
            )
        self._apprise[0].request_rate_per_sec = APART_S  # Apprise's name for it; its 5.5 s would hold up the last alert
        self.name = f"{self._apprise[0].service_name} ({number})"
        """The service, with the number: all that is ever told of it."""

    def send(self, alert: Alert, run: str) -> None:
        """Send an alert.

        Args:
            run: name of the run.

        Raises:
            NotDelivered: it was not taken; the same may go well later.
        """
        text = harmless(alert.text or alert.title)
        title = harmless(f"{run}: {alert.title}")
        result = self._apprise.notify(text, title, alert.level, body_format="text", timeout=TIMEOUT_S)
        if not result:
            logged = " ".join(entry.message for entry in result.logs())
            status = _STATUS.search(logged)
            raise NotDelivered(f"answered with {status.group(1)}" if status else "no connection, or no answer")


def places(urls: Sequence[str]) -> list[Place]:
    """The addresses of a list that are not empty. Raises UserError at one that is not understood."""
    logger = logging.getLogger("apprise")  # whose messages hold whole addresses
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return [Place(number, url) for number, url in enumerate(filter(str.strip, urls), start=1)]


def harmless(text: str) -> str:
    """A text without calls to everybody, and not too long."""
    cut = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
    return _MENTION.sub(lambda found: f"{found.group()}\u200b", cut)
