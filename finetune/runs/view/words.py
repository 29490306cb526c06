"""How figures are written for a reader."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

SHOWN_COUNTS = 6
SPARKS = "▁▂▃▄▅▆▇█"
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def plain(text: str) -> str:
    """A text in one line, without letters that a terminal obeys or that cannot be written."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))


def fixed(digits: int) -> Callable[[float], str]:
    """Numbers with so many digits behind the point."""
    return lambda value: f"{value:,.{digits}f}"


def short(value: float) -> str:
    """A number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def count(value: float) -> str:
    """A whole number."""
    return f"{int(value):,}"


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{share:.1%}"


def gib(value: float) -> str:
    """GiB."""
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for (size, unit), (smaller, name) in pairwise(UNITS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {unit} {rest} {name}" if rest else f"{whole // size:,} {unit}"
    return f"{whole} s"


def about(seconds: float) -> str:
    """A time in its largest unit."""
    return " ".join(duration(max(0.0, seconds)).split()[:2])


def counts(value: Mapping[str, int] | int) -> str:
    """Counts by name, the largest first; or one count."""
    if isinstance(value, int):
        return f"{value:,}"
    order = sorted(value.items(), key=lambda item: -item[1])
    told = [f"{_sized(name)} {number:,}" for name, number in order[:SHOWN_COUNTS]]
    if len(order) > SHOWN_COUNTS:
        told.append(f"{len(order) - SHOWN_COUNTS} more")
    return ", ".join(told) or "none"


def rates(value: Mapping[str, float]) -> str:
    """Learning rates by group; one where all are the same."""
    different = set(value.values())
    if len(different) == 1:
        return f"{different.pop():.3g}"
    return ", ".join(f"{group} {rate:.3g}" for group, rate in value.items())


def spread(values: Sequence[float | None]) -> str:
    """A few values as a small curve with its ends; those that are not there are left out."""
    there = [value for value in values if value is not None]
    return f"{there[0]:.3g} {sparkline(there, len(there))} {there[-1]:.3g}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of so many letters at most, from its lowest to its highest value."""
    cuts = [len(values) * i // width for i in range(width + 1)] if len(values) > width else range(len(values) + 1)
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    return "".join(SPARKS[int((mean - low) / ((high - low) or 1.0) * (len(SPARKS) - 1) + 0.5)] for mean in means)


def _sized(name: str) -> str:
    """A bucket's name with the sign that it is read with; any other name as it is."""
    return name.replace("x", "×") if name[:1].isdigit() else name
