"""metrics.jsonl: one line per optimizer step, each step once."""

import json
import math
from pathlib import Path
from typing import Any

from finetune.monitor.files import append_lines, read_lines, replace_text

Values = dict[str, Any]


class MetricsLog:
    """Steps are recorded as they happen, and written in batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[Values] = []

    def record(self, values: Values) -> None:
        """Keep one step's values."""
        self._pending.append(values)

    def flush(self) -> list[Values]:
        """Write the pending lines; what was written. What is not finite has no name in JSON, and is null."""
        lines = [{key: _written(value) for key, value in values.items()} for values in self._pending]
        append_lines(self._path, lines)
        self._pending.clear()
        return lines

    def supersede(self, step: int) -> int:
        """Move lines of steps beyond `step` to metrics.superseded.jsonl, as a resume will write them again; how many
        that were."""
        lines = read_lines(self._path)
        later = [line for line in lines if line["step"] > step]
        if later:
            append_lines(self._path.with_suffix(".superseded.jsonl"), later)
        kept = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["step"] <= step)
        replace_text(self._path, "".join(kept))
        return len(later)


def _written(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
