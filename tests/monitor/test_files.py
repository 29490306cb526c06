"""Files that grow line by line."""

import json
from pathlib import Path

from finetune.monitor.files import append_lines


def test_a_line_that_was_cut_short_harms_none_that_follow(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_lines(path, [{"kind": "started"}])
    with path.open("ab") as file:
        file.write(b'{"kind": "chec')
    append_lines(path, [{"kind": "resumed"}, {"kind": "phäse"}])
    append_lines(path, [{"kind": "finished"}])
    assert path.read_bytes().count(b"\n") == 5
    first, torn, *others = path.read_text(encoding="utf-8").splitlines()
    assert torn == '{"kind": "chec'
    assert [json.loads(line)["kind"] for line in (first, *others)] == ["started", "resumed", "phäse", "finished"]
