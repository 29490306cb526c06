"""Secrets in URLs."""

import pytest

from finetune.redact import redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host/a.tar: 500", "https://***@host/a.tar: 500"),
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        (
            "https://h/a.tar?X-Amz-Signature=abc&X-Amz-Date=d&page=3",
            "https://h/a.tar?X-Amz-Signature=***&X-Amz-Date=***&page=3",
        ),
        ("https://h/a?token=abc, and more", "https://h/a?token=*** and more"),
        ('{"what": "https://u:p@h/a?sig=x"}', '{"what": "https://***@h/a?sig=***"}'),
    ],
)
def test_urls_lose_what_gives_access(text: str, expected: str) -> None:
    assert redacted(text) == expected
