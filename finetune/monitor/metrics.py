"""Files of one line per step: metrics.jsonl, intervals.jsonl and validation.jsonl. Each step stands once."""

import json
import math
import os
from pathlib import Path
from typing import Any

from finetune.monitor.files import append_lines, read_lines, replace_text

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
        """Move lines of steps beyond `step` to NAME.superseded.jsonl, as a resume will write them again; these."""
        self._file.close()
        lines = read_lines(self._path)
        later = [line for line in lines if line["step"] > step]
        if later:
            append_lines(self._path.with_suffix(".superseded.jsonl"), later)
        kept = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["step"] <= step)
        replace_text(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")
        return later

    def close(self) -> None:
        """Wait until all lines are on the disk, and close the file."""
        self.sync()
        self._file.close()


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
