"""Pictures side by side, with what they are written in the picture itself."""

import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from finetune.monitor.samples.config import Prompt, SamplesConfig

GAP_PX = 4
LEAST_TEXT_PX = 11
INK, PALE = "black", "#666666"


class Row(NamedTuple):
    """Pictures of one size beside each other, with their caption below."""

    pictures: Sequence[Image.Image]
    caption: str
    """Shortened to two lines."""
    note: str = ""
    """In a line of its own, in grey."""


def sample_grids(
    config: SamplesConfig, prompts: Sequence[Prompt], pictures: Sequence[Image.Image], step: int
) -> Iterator[tuple[str, Image.Image]]:
    """A grid for each size, by its name as 512x768: a row for each prompt, a column for each scale of guidance.

    Args:
        pictures: in the order of `SamplesConfig.pictures`.
    """
    columns = len(config.guidance)
    heads = [f"cfg {scale:g}" for scale in config.guidance]
    left = iter(pictures)
    for width, height in config.sizes_px:
        rows = [Row([next(left) for _ in range(columns)], prompt.text, _note(prompt)) for prompt in prompts]
        yield f"{width}x{height}", captioned_grid(rows, heads, f"step {step:,}, {width}×{height} px")


def _note(prompt: Prompt) -> str:
    return f"seed {prompt.seed}" + (f", not: {prompt.negative}" if prompt.negative else "")


def captioned_grid(rows: Sequence[Row], heads: Sequence[str] = (), title: str = "", across: int = 0) -> Image.Image:
    """Rows of as many pictures each, all of one size, in one picture.

    Args:
        heads: what stands above each column of pictures.
        title: what stands above all.
        across: rows beside each other; 0 takes as many as make it near-square.
    """
    width, height = rows[0].pictures[0].size
    columns = len(rows[0].pictures)
    text_px = max(LEAST_TEXT_PX, width // 28)
    cell = (columns * (width + GAP_PX), height + _strip_px(text_px, 2) + bool(rows[0].note) * _strip_px(text_px, 1))
    across = across or max(1, round((len(rows) * cell[1] / cell[0]) ** 0.5))
    top = GAP_PX + bool(title) * _strip_px(text_px, 1) + bool(heads) * _strip_px(text_px, 1)
    size = (across * cell[0] + GAP_PX, top + -(-len(rows) // across) * cell[1])
    grid = Image.new("RGB", size, "white")
    if title:
        grid.paste(_strip(title, size[0] - 2 * GAP_PX, text_px, 1), (GAP_PX, GAP_PX))
    for i in range(across if heads else 0):
        for j, head in enumerate(heads):
            left = GAP_PX + i * cell[0] + j * (width + GAP_PX)
            grid.paste(_strip(head, width, text_px, 1), (left, top - _strip_px(text_px, 1)))
    for i, row in enumerate(rows):
        grid.paste(_drawn(row, cell, text_px), (GAP_PX + i % across * cell[0], top + i // across * cell[1]))
    return grid


def _drawn(row: Row, size: tuple[int, int], text_px: int) -> Image.Image:
    """A row with its caption and note."""
    drawn = Image.new("RGB", size, "white")
    width, height = row.pictures[0].size
    for i, picture in enumerate(row.pictures):
        drawn.paste(picture, (i * (width + GAP_PX), 0))
    drawn.paste(_strip(row.caption, size[0] - GAP_PX, text_px, 2), (0, height))
    if row.note:
        drawn.paste(_strip(row.note, size[0] - GAP_PX, text_px, 1, PALE), (0, height + _strip_px(text_px, 2)))
    return drawn


def _strip_px(text_px: int, lines: int) -> int:
    """Height of a strip of text."""
    return lines * (text_px + text_px // 4) + GAP_PX


def _strip(text: str, width: int, text_px: int, lines: int, ink: str = INK) -> Image.Image:
    """Text in at most so many lines, on a strip of its own that nothing sticks out of."""
    strip = Image.new("RGB", (width, _strip_px(text_px, lines)), "white")
    font = _font(text_px)
    text = shortened(text, font, width, lines)
    ImageDraw.Draw(strip).multiline_text((0, 1), text, fill=ink, font=font, spacing=text_px // 8)
    return strip


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> str:
    """A text in at most so many lines of about `width` pixels, with an ellipsis where it goes on; what cannot be drawn,
    as line breaks and control characters, is a space."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    columns = max(8, int(len(text) * width / max(font.getlength(text), 1.0)))
    return "\n".join(textwrap.wrap(text, columns, max_lines=lines, placeholder="…"))


@cache
def _font(text_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more; a box stands for what it
    lacks, as Chinese."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), text_px)


def save_grid(grid: Image.Image, folder: Path, step: int, size: str) -> Path:
    """Write a grid as `step-00000500-512x768.png`; no reader sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-{size}.png"
    temporary = path.with_name(f".{path.name}.tmp")
    grid.save(temporary, format="PNG")
    temporary.replace(path)
    return path
