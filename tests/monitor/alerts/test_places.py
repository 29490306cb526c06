"""Addresses, against real servers: the bodies that chats and mail servers get, and what is never shown."""

import io
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from apprise.plugins.discord import NotifyDiscord
from apprise.plugins.slack import NotifySlack

from finetune.errors import UserError
from finetune.monitor.alerts.places import LONGEST_TEXT, NotDelivered, harmless, places
from finetune.monitor.alerts.rules import Alert
from tests.monitor.alerts.receivers import LOOPBACK, http_receiver, smtp_receiver

SECRET = "planted-secret-0123456789"
ALERT = Alert("skipped", "warning", "not a number in step 1,234", "loss is nan.")
DISCORD = "https://discord.com/api/webhooks/123456789/abcdefghijklmnop"
WITHOUT_TLS = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
SLACK = "https://hooks.slack.com/services/T12345678/B12345678/abcdefghijklmnopqrstuvwx"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What a program that logs everything would have logged."""
    text = io.StringIO()
    handler, root = logging.StreamHandler(text), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.setLevel(before)
    root.removeHandler(handler)


def test_ntfy_gets_title_and_message() -> None:
    with http_receiver() as receiver:
        places([receiver.ntfy])[0].send(ALERT, "fox")
    wanted = {"topic": "topic", "title": "fox: not a number in step 1,234", "message": "loss is nan."}
    assert receiver.taken == [("/", wanted)]


def test_discord_s_own_webhook_gets_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as receiver:
        monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://{LOOPBACK}:{receiver.port}/webhooks")
        places([DISCORD])[0].send(ALERT, "fox")
    [(path, body)] = receiver.taken
    assert path == "/webhooks/123456789/abcdefghijklmnop"
    assert body["content"].splitlines() == ["fox: not a number in step 1,234", "loss is nan."]
    assert "http" not in str(body)  # no picture of a stranger's


def test_slack_s_own_webhook_gets_an_attachment(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as receiver:
        monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{LOOPBACK}:{receiver.port}/services")
        places([SLACK])[0].send(ALERT, "fox")
    [(path, body)] = receiver.taken
    assert path == "/services/T12345678/B12345678/abcdefghijklmnopqrstuvwx"
    [attachment] = body["attachments"]
    assert (attachment["title"], attachment["text"]) == ("fox: not a number in step 1,234", "loss is nan.")
    assert "http" not in str(body)


@WITHOUT_TLS
@pytest.mark.parametrize("login", [False, True])
def test_mail_is_sent_with_and_without_a_password(*, login: bool) -> None:
    with smtp_receiver(login=login) as mailbox:
        who = "fox:hunter2@" if login else ""
        [place] = places([f"mailto://{who}{LOOPBACK}:{mailbox.port}?from=run@example.org&to=me@example.org"])
        place.send(replace(ALERT, text="loss is <b>nan</b>."), "fox")
    [mail] = mailbox.mails
    assert (mail["Subject"], mail["To"]) == ("fox: not a number in step 1,234", "me@example.org")
    assert "run@example.org" in mail["From"]
    assert mail.get_content_type() == "text/plain"  # in a page, the text would have to be escaped
    assert mail.get_content().strip() == "loss is <b>nan</b>."
    assert mailbox.logins == ([(b"fox", b"hunter2")] if login else [])


@WITHOUT_TLS
def test_a_wrong_password_is_a_failure_without_the_password() -> None:
    with smtp_receiver(login=True) as mailbox:
        [place] = places(
            [f"mailto://fox:{SECRET}@{LOOPBACK}:{mailbox.port}?from=run@example.org&to=me@example.org&cto=2"]
        )
        with pytest.raises(NotDelivered) as raised:
            place.send(ALERT, "fox")
    assert not mailbox.mails
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("status", [500, 429, 404, 400])
def test_an_answer_that_refuses_is_told_by_its_number(status: int) -> None:
    with http_receiver() as receiver:
        receiver.status = status
        with pytest.raises(NotDelivered, match=f"answered with {status}"):
            places([receiver.ntfy])[0].send(ALERT, "fox")


def test_a_server_that_never_answers_is_a_failure() -> None:
    with http_receiver() as receiver:
        receiver.hangs.set()
        with pytest.raises(NotDelivered, match="no answer"):
            places([f"{receiver.ntfy}?rto=0.2"])[0].send(ALERT, "fox")
        assert receiver.posts


@pytest.mark.parametrize(
    "url",
    [
        f"foo://{SECRET}",
        f"https://example.org/{SECRET}",
        f"discord://{SECRET}",
        SECRET,
        f"mailto://:{SECRET}",
    ],
)
def test_an_address_that_is_not_understood_is_not_shown(
    url: str, logged: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"address 2 .* is not understood") as raised:
        places(["ntfy://topic", url])
    assert SECRET not in f"{raised.value}{raised.value.details}{logged.getvalue()}{''.join(capfd.readouterr())}"


def test_nothing_of_an_address_is_shown_when_sending_fails(
    logged: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    [place] = places([f"ntfy://{SECRET}:{SECRET}@{LOOPBACK}:1/{SECRET}"])
    with pytest.raises(NotDelivered) as raised:
        place.send(ALERT, "fox")
    assert SECRET not in f"{raised.value}{place.name}{logged.getvalue()}{''.join(capfd.readouterr())}"


def test_a_text_holds_any_number_of_addresses() -> None:
    assert places(["", " "]) == []
    assert [place.name for place in places([f"ntfy://one\n{SLACK}"])] == ["ntfy (1)", "Slack (2)"]
    assert [place.name for place in places(["", "ntfy://one", SLACK])] == ["ntfy (1)", "Slack (2)"]


def test_texts_call_nobody_and_are_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = "@everyone <@U123> <!channel> !here> @here"
    with http_receiver() as receiver:
        monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{LOOPBACK}:{receiver.port}")
        monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://{LOOPBACK}:{receiver.port}")
        for place in places([SLACK, DISCORD]):
            place.send(Alert("failed", "failure", "failed", calls), "fox")
    for call in ("@everyone", "@U123", "!channel", "!here", "@here"):
        assert call not in str([body for _, body in receiver.taken])
    assert harmless("somebody@example.org") == "somebody@example.org"
    assert len(harmless("x" * 10_000)) == LONGEST_TEXT


def test_what_is_no_unicode_is_sent_all_the_same() -> None:
    with http_receiver() as receiver:
        places([receiver.ntfy])[0].send(Alert("failed", "failure", "failed", "half a letter \ud800"), "fox\udcff")
    assert receiver.taken[0][1]["message"] == "half a letter ?"
