"""Files that others read while they are written."""

import resource
from pathlib import Path

import pytest

from finetune.monitor.files import append_lines, read_lines


def test_nothing_is_left_of_lines_that_did_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"step": 1}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))  # as if the disk were full from there on
    try:
        with pytest.raises(OSError, match="too large"):
            append_lines(path, [{"step": 2}, {"step": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_lines(path, [{"step": 4}, {"step": 5}])
    assert [line["step"] for line in read_lines(path)] == [1, 4, 5]
