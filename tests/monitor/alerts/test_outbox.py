"""alerts.json: what another watcher takes up."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.outbox import FILE_NAME, Outbox
from finetune.monitor.alerts.rules import Alert

CONFIG = AlertsConfig(mute=["phase"], again_after_s=1800.0, per_hour=2)
PLACES = ("ntfy (1)", "Slack (2)")


def opened(folder: Path, places: tuple[str, ...] = PLACES) -> Outbox:
    return Outbox(folder / FILE_NAME, CONFIG, places)


def texts(outbox: Outbox) -> list[tuple[str, list[str]]]:
    return [(f"{letter.alert.title} {letter.alert.text}", letter.to) for letter in outbox.letters]


@given(
    kinds=st.lists(st.sampled_from(["skipped", "phase", "failed", "data outage"]), max_size=12), cut=st.integers(0, 12)
)
def test_a_watcher_that_goes_on_sends_what_one_alone_would(
    tmp_path_factory,
    kinds: list[str],
    cut: int,  # type: ignore[no-untyped-def]
) -> None:
    alone, first = opened(tmp_path_factory.mktemp("alone")), opened(tmp_path_factory.mktemp("first"))
    for i, kind in enumerate(kinds):
        alone.add(Alert(kind, "info", f"{kind} {i}"), 1e9 + 600 * i)
        if i == cut:
            first.save()
            first = Outbox(first.path, CONFIG, PLACES)
        first.add(Alert(kind, "info", f"{kind} {i}"), 1e9 + 600 * i)
    assert texts(first) == texts(alone)
    assert first.fresh == first.letters


def test_what_is_muted_is_not_sent_and_counts_for_nothing(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for _ in range(10):
        outbox.add(Alert("phase", "info", "phase 2"), 1e9)
    outbox.sum_up(1e9)
    assert not outbox.letters


def test_what_one_place_has_is_kept_for_the_other(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.add(Alert("failed", "failure", "failed"), 1e9)
    outbox.done(outbox.letters[0], "ntfy (1)")
    outbox.save()
    later = opened(tmp_path)
    assert [letter.to for letter in later.letters] == [["Slack (2)"]]
    later.done(later.letters[0], "Slack (2)")
    later.save()
    assert not opened(tmp_path).letters


def test_other_places_get_what_is_left(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.add(Alert("failed", "failure", "failed"), 1e9)
    outbox.save()
    assert [letter.to for letter in opened(tmp_path, ("Email (1)",)).letters] == [["Email (1)"]]


def test_where_it_was_is_kept(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert (outbox.offset, outbox.silent) == (None, None)
    outbox.offset, outbox.silent = 17, ["box", 42, 1e9]
    outbox.save()
    assert (opened(tmp_path).offset, opened(tmp_path).silent) == (17, ["box", 42, 1e9])
    assert json.loads((tmp_path / FILE_NAME).read_text())["offset"] == 17


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"offset": 4}', b'{"offset": 4, "silent": null, "said": []}']
)
def test_a_damaged_one_does_not_silence_the_watcher(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(text)
    outbox = opened(tmp_path)
    outbox.add(Alert("failed", "failure", "failed"), 1e9)
    outbox.save()
    assert [letter.alert.kind for letter in opened(tmp_path).letters] == ["failed"]


def test_any_text_can_be_kept(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.add(Alert("failed", "failure", "failed", "half a letter \ud800, é"), 1e9)
    outbox.save()
    assert opened(tmp_path).letters == outbox.letters
