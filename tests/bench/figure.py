"""What a benchmark reports."""

from typing import NamedTuple


class Figure(NamedTuple):
    """One measured figure."""

    name: str
    value: float
    unit: str
    detail: str


class Skipped(Exception):
    """What a figure needs is missing here; the message says what."""
