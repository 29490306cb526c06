"""Taking secrets out of what is written down or shown."""

import re

_USER_INFO = re.compile(r"(?<=://)[^/@\s\"]+(?=@)")
_SIGNED = re.compile(
    r"([?&](?:X-Amz-[\w-]+|AWSAccessKeyId|Signature|sig|token|access_token|key)=)[^&\s\"']+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """A text whose URLs have lost their user names, passwords and signatures."""
    return _SIGNED.sub(r"\1***", _USER_INFO.sub("***", text))
