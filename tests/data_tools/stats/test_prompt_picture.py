"""Figures of prompts as tables and as a picture."""

import warnings
from collections.abc import Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from data_tools.stats import prompt_picture, prompt_tables
from data_tools.stats.forms import FormFigures
from data_tools.stats.prompts import LengthFigures, PairFigures, PromptFigures, TagFigures

HALF = {"tags": 0.5, "caption": 0.5}
LENGTHS = LengthFigures(limit=75, median=9, p95=31, longest=72, cut=0.25, class_tokens=5, classes=[*range(14), 9])
NONE_LEFT = LengthFigures(limit=75, median=0, p95=0, longest=0, cut=0.0, class_tokens=5, classes=[])


def figures(tags: Sequence[str], sources: int = 1, lengths: LengthFigures = LENGTHS) -> PromptFigures:
    """Plausible ones, for some tags each of which implies the one before it."""
    return PromptFigures(
        samples=100,
        draws=10,
        unreadable=1,
        sources=[FormFigures(f"source{i}", HALF, {**HALF, "missing": 0.0}) for i in range(sources)],
        forms={"tags": 0.5, "emptied": 0.1, "missing": 0.4},
        empty=0.5,
        emptied=0.1,
        no_flip=0.03,
        stored_tags=7.0,
        drawn_tags=5.0,
        lost_tags={"by chance": 0.1, "implied": 0.05} if tags else {},
        tags=[TagFigures(tag, 0.9, 0.5, i / len(tags), 0.9, "by chance") for i, tag in enumerate(tags)],
        implied_pairs=[PairFigures(b, a, 0.5, 0.25) for a, b in pairwise(tags)],
        lengths=lengths,
    )


def printed(told: PromptFigures) -> str:
    console = Console(file=StringIO(), width=150, markup=False, emoji=False)
    for table in prompt_tables.prompt_tables(told):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_a_picture_with_few_and_many_tags(tmp_path: Path, count: int) -> None:
    told = figures([f"tag {i}" for i in range(count)], sources=max(1, count), lengths=LENGTHS if count else NONE_LEFT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_picture.draw_prompts(told, tmp_path / "prompts.png")
    with Image.open(tmp_path / "prompts.png") as image:
        assert 1000 < image.width < 2000
        assert 300 < image.height < 2000


def test_tags_of_any_letters_are_drawn_as_they_are(tmp_path: Path) -> None:
    told = figures(["$x$", "$\\frac{", "犬", "a_b^{", ":smile:", "[bold]", "long " * 60])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_picture.draw_prompts(told, tmp_path / "prompts.png")
    text = printed(told)
    for tag in ("$x$", "犬", ":smile:", "[bold]", "long long"):
        assert tag in text
    assert "…" in text
    assert "long " * 20 not in text


def test_tables_leave_out_what_there_is_none_of() -> None:
    assert "implied" not in printed(figures([]))
    assert "lost" not in printed(figures([]))
    text = printed(figures(["a", "b"]))
    assert "still together" in text
    assert "further samples, not readable" in text
    shown = printed(figures([f"tag {i}" for i in range(500)]))
    assert f"the {prompt_tables.TAGS_SHOWN} most frequent of 500 tags" in shown


def test_classes_of_lengths_add_up() -> None:
    lines = [line.split() for line in printed(figures([])).splitlines()]
    rows = {line[0]: line[1:] for line in lines if len(line) == 4 and line[0].isdecimal()}
    assert rows == {"1": ["25", "10", "10.0%"], "26": ["50", "35", "35.0%"], "51": ["75", "55", "55.0%"]}
