"""Files of one line per step: metrics.jsonl, intervals.jsonl and validation.jsonl. Each step stands once."""

import json
import math
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetune.monitor.files import append_lines

Values = dict[str, Any]


class MetricsLog:
    """A file whose lines are handed to the system one by one, so that no kill of the process loses any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def record(self, values: Values) -> Values:
        """Write one line; what was written. What is not finite has no name in JSON, and is null."""
        line = {key: _written(value) for key, value in values.items()}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        return line

    def sync(self) -> None:
        """Wait until all lines are on the disk. Any thread may call it while another one records."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def supersede(self, step: int) -> list[Values]:
        """Move lines of steps beyond `step` to NAME.superseded.jsonl, as a resume will write them again; these.

        Only they are parsed: the lines of months are in the order of their steps.
        """
        lines = self._path.read_bytes().split(b"\n")[:-1]  # but for what a kill has cut short
        last_first = takewhile(lambda line: line["step"] > step, map(json.loads, reversed(lines)))
        later: list[Values] = list(last_first)[::-1]
        if later:
            append_lines(self._path.with_suffix(".superseded.jsonl"), later)
        self._file.truncate(sum(len(line) + 1 for line in lines[: len(lines) - len(later)]))
        return later

    def close(self) -> None:
        """Wait until all lines are on the disk, and close the file."""
        self.sync()
        self._file.close()


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
