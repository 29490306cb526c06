"""Taking secrets out of what is written down or shown."""

import os
import re
from typing import Any

_USER_INFO = re.compile(r"(?<=://)[^/\s\"]+(?=@)")
_SIGNED = re.compile(
    r"([?&](?:X-Amz-[\w-]+|AWSAccessKeyId|sig|[\w-]*(?:signature|key|token|secret|password|auth))=)[^&\s\"']+",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"(key|token|secret|passw(or)?d|passphrase|_pass|credentials|webhook(_url)?|_alerts)$", re.IGNORECASE
)
SHORTEST = 8
"""Letters that a value of the environment has at least if it is looked for: shorter ones turn up by chance."""


def is_secret(name: str) -> bool:
    """Whether what goes by a name is not to be shown."""
    return bool(_SECRET.search(name))


def redacted(text: str) -> str:
    """A text without what gives access: user names, passwords and signatures in URLs, and the values of the
    environment's secrets."""
    secrets = [value for name, value in os.environ.items() if is_secret(name)]
    # LONGHAUL_ALERTS holds several.
    for secret in (*secrets, *(word for value in secrets for word in value.split())):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1***", _USER_INFO.sub("***", text))


def redacted_tree(value: Any) -> Any:
    """Plain values, however nested, with all their texts `redacted`."""
    if isinstance(value, dict):
        return {key: redacted_tree(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(below) for below in value]
    return redacted(value) if isinstance(value, str) else value


def blacked_out(value: Any, name: str = "") -> Any:
    """Plain values, however nested, without the texts that go by secret names."""
    if isinstance(value, dict):
        return {key: blacked_out(below, str(key)) for key, below in value.items()}
    if isinstance(value, list):
        return [blacked_out(below, name) for below in value]
    return "***" if isinstance(value, str) and value and is_secret(name) else value
