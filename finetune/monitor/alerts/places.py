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
UNFIT = (400, 413, 422)
"""Answers that say that an alert is at fault, not the address or the server. Others shall not wait for it."""
_MENTION = re.compile(r"(?<!\w)[@!](?=\w)")
"""What chats take for a call to somebody or to all; texts may come from servers and from names of samples."""


class NotDelivered(Exception):
    """A place has not taken an alert; the message is the reason, without anything of the address."""


class Refused(NotDelivered):
    """A place that answers will never take this alert, but may take others."""


class Place:
    """One address."""

    def __init__(self, number: int, url: str) -> None:
        """Take an address apart.

        Args:
            number: its place among all, from 1.

        Raises:
            UserError: Apprise does not understand it.
        """
        asset = AppriseAsset(app_id="Longhaul", app_desc="Longhaul", app_url="", image_url_mask="")
        service = Apprise.instantiate(url, asset=asset)
        if service is None:
            scheme = _SCHEME.match(url)
            raise UserError(
                f"address {number} for alerts ({scheme.group() if scheme else 'without a scheme'}), of those in "
                "monitor.alerts.to or --to, is not understood: docs/alerts.md says how each is written"
            )
        service.request_rate_per_sec = APART_S  # Apprise's name for it; its 5.5 s would hold up the last alert
        self._apprise = Apprise(service, asset=asset)
        self.name = f"{service.service_name} ({number})"
        """The service, with the number: all that is ever told of it."""

    def send(self, alert: Alert, run: str) -> None:
        """Send an alert.

        Args:
            run: name of the run.

        Raises:
            Refused: it was not taken, and never will be.
            NotDelivered: it was not taken; the same may go well later.
        """
        text = harmless(alert.text or alert.title)
        title = harmless(f"{run}: {alert.title}")
        result = self._apprise.notify(text, title, alert.level, body_format="text", timeout=TIMEOUT_S)
        if not result:
            logged = " ".join(entry.message for entry in result.logs())
            status = _STATUS.search(logged)
            if status is None:
                raise NotDelivered("no connection, or no answer")
            kind = Refused if int(status.group(1)) in UNFIT else NotDelivered
            raise kind(f"answered with {status.group(1)}")


def places(texts: Sequence[str]) -> list[Place]:
    """The addresses in some texts, between which there is white space. Raises UserError at one that is not
    understood."""
    logger = logging.getLogger("apprise")  # whose messages hold whole addresses
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    urls = [url for text in texts for url in text.split()]
    return [Place(number, url) for number, url in enumerate(urls, start=1)]


def harmless(text: str) -> str:
    """A text without calls to everybody and without what cannot be sent, and not too long."""
    text = text.encode(errors="replace").decode()
    cut = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
    return _MENTION.sub(lambda found: f"{found.group()}\u200b", cut)
