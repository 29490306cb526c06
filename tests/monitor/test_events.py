"""Events, whatever they tell of."""

import json
from pathlib import Path

from finetune.monitor.events import EVENTS, EventLog
from finetune.monitor.files import read_lines


def test_names_that_are_no_utf8_are_written_down_and_read_again(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode(errors="surrogateescape")
    EventLog(tmp_path / EVENTS).write("skipped", step=3, keys=[name, "é"])
    (event,) = read_lines(tmp_path / EVENTS)
    assert event["keys"] == [name, "é"]
    assert "é" in (tmp_path / EVENTS).read_text(encoding="utf-8")
    assert json.loads((tmp_path / EVENTS).read_bytes()) == event
