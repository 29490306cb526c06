"""Reading events while another process writes them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.alerts.tail import new_events

EVENTS = [{"kind": "started", "step": 0}, {"kind": "data outage", "what": "é"}, {"kind": "resumed"}, {"kind": "failed"}]
TEXT = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in EVENTS).encode()


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_however_it_is_cut_each_event_comes_once(tmp_path_factory, cuts: list[int]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    found, offset = [], 0
    for cut in [*sorted(cuts), len(TEXT)]:
        path.write_bytes(TEXT[:cut])
        events, offset = new_events(path, offset)
        found += events
    assert found == EVENTS


def test_what_a_kill_has_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "chec' + TEXT)
    assert new_events(path, 0)[0] == EVENTS[1:]


def test_it_begins_with_the_last_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert new_events(path, None) == ([], 0)
    path.write_bytes(TEXT)
    assert new_events(path, None) == (EVENTS[2:], len(TEXT))


def test_a_shorter_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(TEXT)
    assert new_events(path, len(TEXT) + 1) == (EVENTS[2:], len(TEXT))


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"\xff", b'{"kind": ["failed"]}', b'{"kind": null}', b"[]", b"9" * 9000]
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n" + TEXT)
    assert new_events(path, 0)[0] == EVENTS
    assert new_events(path, None)[0] == EVENTS[2:]
