"""Grids with captions in the picture."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.monitor.samples.config import SamplesConfig
from finetune.monitor.samples.grid import Row, _font, captioned_grid, sample_grids, save_grid, shortened

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 99, 9), (200, 200, 0), (0, 200, 200), (7, 7, 77), (77, 0, 7)]


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def box(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a colour, which has to fill it."""
    found = np.argwhere((np.asarray(grid) == colour).all(axis=-1))
    top, left = found.min(axis=0)
    bottom, right = found.max(axis=0) + 1
    assert len(found) == (bottom - top) * (right - left)
    return int(left), int(top), int(right), int(bottom)


def ink(grid: Image.Image, area: tuple[int, int, int, int]) -> int:
    """How many pixels of an area are darker than the paper."""
    return int((np.asarray(grid.crop(area).convert("L")) < 128).sum())


@pytest.mark.parametrize("across", [0, 1, 3])
def test_a_grid_shows_every_picture_whole_above_its_caption(across: int) -> None:
    rows = [Row([plain(a), plain(b)], "a caption " * 20) for a, b in zip(COLOURS[::2], COLOURS[1::2], strict=True)]
    grid = captioned_grid(rows, ["first", "second"], "title", across)
    boxes = [box(grid, colour) for colour in COLOURS]
    assert all((right - left, bottom - top) == (64, 48) for left, top, right, bottom in boxes)
    for a, b in zip(boxes[::2], boxes[1::2], strict=True):
        assert (a[1], a[0] < b[0]) == (b[1], True)
        assert ink(grid, (a[0], a[3], b[2], a[3] + 24)) > 20
    assert len({left for left, *_ in boxes[::2]}) == (across or 2)
    bare = captioned_grid([Row(row.pictures, "") for row in rows], ["first", "second"], "title", across)
    assert bare.size == grid.size


def test_heads_stand_above_their_columns_and_the_title_above_all() -> None:
    rows = [Row([plain(COLOURS[0]), plain(COLOURS[1])], "")]
    bare = captioned_grid(rows)
    left, headed = (captioned_grid(rows, heads) for heads in (["head", ""], ["", "head"]))
    first, second = box(left, COLOURS[0]), box(left, COLOURS[1])
    assert ink(left, (first[0], 0, first[2], first[1])) > 0 == ink(left, (second[0], 0, second[2], second[1]))
    assert ink(headed, (second[0], 0, second[2], second[1])) > 0 == ink(headed, (first[0], 0, first[2], first[1]))
    titled = captioned_grid(rows, ["", ""], "title")
    assert bare.height < left.height < titled.height
    assert ink(titled, (0, 0, titled.width, titled.height - left.height)) > 0


def test_notes_have_a_line_of_their_own() -> None:
    noted, bare = (captioned_grid([Row([plain(COLOURS[0])], "caption", note)]) for note in ("seed 5", ""))
    assert noted.height > bare.height
    assert noted.crop((0, 0, *bare.size)).tobytes() == bare.tobytes()


@settings(deadline=None, max_examples=50)
@given(st.text(), st.integers(8, 200), st.integers(11, 30))
def test_any_text_can_be_drawn_and_nothing_sticks_out(text: str, width: int, text_px: int) -> None:
    told = shortened(text, _font(text_px), width, 2)
    assert told.count("\n") <= 1
    captioned = captioned_grid([Row([plain(COLOURS[0], (width, 8))], text), Row([plain(COLOURS[1], (width, 8))], "")])
    box(captioned, COLOURS[0])
    box(captioned, COLOURS[1])


def test_long_captions_end_in_an_ellipsis_and_short_ones_are_whole() -> None:
    font = _font(12)
    assert shortened("a  red\nfox\x00", font, 300, 2) == "a red fox"
    for long in ("a red fox " * 50, "狐" * 500, "x" * 500):
        told = shortened(long, font, 300, 2)
        assert told.endswith("…")
        assert max(font.getlength(line) for line in told.splitlines()) < 360
        assert long.startswith(told.splitlines()[0])


def test_scripts_that_the_font_has_are_not_drawn_as_boxes() -> None:
    strips = {letter: captioned_grid([Row([plain(COLOURS[0])], letter)]).tobytes() for letter in "дλéشa\U000f0000"}
    assert len(set(strips.values())) == len(strips)  # the last is in no font


def test_a_recipe_s_grids_have_a_row_for_each_prompt_and_a_column_for_each_scale() -> None:
    config = SamplesConfig(prompts=["a", "b"], sizes_px=[[64, 48], [48, 64]], guidance=[4.0, 7.0])
    pictures = [plain(colour, size) for colour, size in zip(COLOURS, [(64, 48)] * 4 + [(48, 64)] * 4, strict=True)]
    found = dict(sample_grids(config, config.all_prompts(), pictures, 500))
    assert list(found) == ["64x48", "48x64"]
    for grid, colours in zip(found.values(), (COLOURS[:4], COLOURS[4:]), strict=True):
        a4, a7, b4, b7 = (box(grid, colour) for colour in colours)
        assert a4[1] == a7[1] <= b4[1] == b7[1]
        assert a4[0] < a7[0]
        assert (b4[0] - a4[0], b4[1] - a4[1]) == (b7[0] - a7[0], b7[1] - a7[1])


def test_a_grid_is_kept_by_its_step_and_size(tmp_path: Path) -> None:
    grid = plain(COLOURS[0])
    path = save_grid(grid, tmp_path / "samples", 500, "64x48")
    assert [path] == list((tmp_path / "samples").iterdir())
    assert path.name == "step-00000500-64x48.png"
    assert Image.open(path).tobytes() == grid.tobytes()
