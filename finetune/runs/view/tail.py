"""Files of JSON lines that have grown for months: their end, and some of their lines all along, at a bounded cost."""

import io
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

Line = dict[str, Any]
CHUNK = 8 * 1024
"""Bytes that are read at a place: a dozen lines of metrics.jsonl."""
LONGEST = 1024 * 1024
"""A last line beyond so many bytes is not looked for."""
LARGEST = 1e100
"""What is beyond it is no figure."""
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
"""Whatever was not finite is null."""


def last_lines(path: Path, count: int) -> list[Line]:
    """The last whole lines of a file, at most `count`, oldest first; none where it is not there."""
    with _opened(path) as file:
        size = file.seek(0, io.SEEK_END)
        length, lines = CHUNK, list[Line]()
        while len(lines) < count:
            lines = list(_lines(file, size - length, size))
            if length >= min(size, LONGEST):
                break
            length *= 4
    return lines[-count:]


def spread_lines(path: Path, places: int) -> list[list[Line]]:
    """Groups of lines that lie together, from `places` places evenly spread over a file, oldest first.

    All lines of a short file are among them, and of a long one CHUNK bytes at each place.
    """
    with _opened(path) as file:
        size = file.seek(0, io.SEEK_END)
        if size <= places * CHUNK:
            lines = list(_lines(file, 0, size))
            cuts = [len(lines) * i // places for i in range(places + 1)]
            groups = [lines[a:b] for a, b in pairwise(cuts)]
        else:
            starts = [(size - CHUNK) * i // (places - 1) for i in range(places)]
            groups = [list(_lines(file, start, start + CHUNK)) for start in starts]
    return [group for group in groups if group]


def numbers(values: Iterable[Any]) -> list[float]:
    """Those of some values that are figures: what was not finite is null in the files, and other versions have other
    keys."""
    return [float(value) for value in values if type(value) in (int, float) and abs(value) <= LARGEST]


def mean(values: Iterable[Any]) -> float | None:
    """The mean of those that are figures; None where there is none."""
    found = numbers(values)
    return math.fsum(found) / len(found) if found else None


def _opened(path: Path) -> BinaryIO:
    with suppress(FileNotFoundError):
        if path.is_file():  # a pipe would be waited for
            return path.open("rb", buffering=0)
    return io.BytesIO()


def _lines(file: BinaryIO, start: int, end: int) -> Iterator[Line]:
    """The whole lines between two places of a file. What is no JSON object is passed over: a line that is being
    written, or that a kill cut short."""
    start = max(start, 0)
    file.seek(max(start - 1, 0))
    data = file.read(end - file.tell())
    lines = data.split(b"\n")[:-1]
    for line in lines[1 if start else 0 :]:  # what comes before the first border belongs to a line that began earlier
        with suppress(ValueError, RecursionError):
            if isinstance(found := _DECODER.decode(line.decode()), dict):
                yield found
