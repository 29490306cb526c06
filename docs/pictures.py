"""Pictures that are drawn from curves of ours, and tell in their file from which; they differ by matplotlib's version,
so it is the curves that are compared."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

STAMP = "Curves"


def stamp(curves: Mapping[str, Sequence[float]]) -> str:
    """A hash of the curves to five digits."""
    rows = [f"{name} {' '.join(f'{value:.4e}' for value in values)}" for name, values in curves.items()]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def draw_or_check(
    path: Path, curves: Mapping[str, Sequence[float]], draw: Callable[[Mapping[str, Sequence[float]]], Figure]
) -> None:
    """Draw a picture or, with --check on the command line, end with a sentence where it is out of date."""
    if "--check" not in sys.argv:
        draw(curves).savefig(path, dpi=100, metadata={STAMP: stamp(curves)})
        return
    with Image.open(path) as picture:
        fresh = picture.info.get(STAMP) == stamp(curves)
    sys.exit(0 if fresh else f"{path} is out of date: run python docs/{Path(sys.argv[0]).name}")
