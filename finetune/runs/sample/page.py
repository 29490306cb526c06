"""A table of pictures as one page that needs nothing else, and as one picture."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from finetune.monitor.samples.grid import Row, captioned_grid
from finetune.runs.sample.axes import Table

T = TypeVar("T")
TEMPLATE = "page.html"
QUALITY = 90
"""Of the page's pictures, in WebP; those of the PNG are as they were sampled."""


def page(table: Table, pictures: Sequence[Image.Image], title: str) -> str:
    """The whole document; whatever prompts hold is text in it.

    Args:
        pictures: row by row.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    rows = zip(table.y.labels, _rows(table, [_data_uri(picture) for picture in pictures]), strict=True)
    width, height = table.size_px
    return environment.get_template(TEMPLATE).render(
        title=title, remark=table.remark, heads=table.x.labels, rows=list(rows), width=width, height=height
    )


def picture(table: Table, pictures: Sequence[Image.Image], title: str) -> Image.Image:
    """All in one picture: columns along x, whose values stand above them, and rows along y, with theirs below."""
    rows = zip(_rows(table, pictures), table.y.labels, strict=True)
    return captioned_grid([Row(*row) for row in rows], table.x.labels, f"{title}: {table.remark}", across=1)


def _rows(table: Table, cells: Sequence[T]) -> list[Sequence[T]]:
    columns = len(table.x.values)
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


def _data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
