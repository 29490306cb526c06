"""Secrets in URLs."""

import pytest

from finetune.redact import blacked_out, redacted, redacted_tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host/a.tar: 500", "https://***@host/a.tar: 500"),
        ("https://me:p@ss@host/a@b.tar", "https://***@host/a@b.tar"),
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        (
            "https://h/a.tar?X-Amz-Signature=abc&X-Amz-Date=d&page=3",
            "https://h/a.tar?X-Amz-Signature=***&X-Amz-Date=***&page=3",
        ),
        ("https://h/a?token=abc, and more", "https://h/a?token=*** and more"),
        ("https://h/a?access_token=abc&apikey=x&api-key=y", "https://h/a?access_token=***&apikey=***&api-key=***"),
        ('{"what": "https://u:p@h/a?sig=x"}', '{"what": "https://***@h/a?sig=***"}'),
    ],
)
def test_urls_lose_what_gives_access(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_what_the_environment_keeps_secret_is_taken_out_of_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("SHORT_KEY", "tag")
    monkeypatch.setenv("HARMLESS", "harmless words")
    assert redacted("Bearer hf_abcdefgh for a tag of harmless words") == "Bearer *** for a tag of harmless words"


@pytest.mark.parametrize(
    "name", ["LONGHAUL_ALERTS", "SMTP_PASS", "DB_PASSWD", "GOOGLE_CREDENTIALS", "CHAT_WEBHOOK_URL"]
)
def test_variables_may_hold_several_secrets(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "https://chat/hooks/abc\nntfys://ntfy.sh/topic")
    assert redacted("https://chat/hooks/abc: 500, ntfys://ntfy.sh/topic: 500") == "***: 500, ***: 500"


def test_values_under_secret_names_are_blacked_out_at_any_depth() -> None:
    tree = {"a": [{"api_key": "x", "keys": 3, "monkeys": "y"}], "password": "", "secret": ["y", "z"], "b": 1.5}
    assert blacked_out(tree) == {
        "a": [{"api_key": "***", "keys": 3, "monkeys": "y"}],
        "password": "",
        "secret": ["***", "***"],
        "b": 1.5,
    }


def test_texts_at_any_depth_are_redacted_whatever_they_are_called() -> None:
    tree = {"key": "a/b", "a": ({"b": "https://u:p@h"}, 1), "c": None}
    assert redacted_tree(tree) == {"key": "a/b", "a": [{"b": "https://***@h"}, 1], "c": None}
