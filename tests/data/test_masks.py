"""Masks stay with their pictures, wherever they come from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.buckets import Crop, fit
from finetune.data.images import ImageInfo, load, load_mask, load_with_alpha, probe
from finetune.errors import DataFault
from tests.data.test_images import FORMATS, WHITE, decoded, encoded, halves, turned, whole


def waves(width: int = 240, height: int = 160) -> Image.Image:
    """Grey waves that no turn, mirror or shift leaves as they are."""
    y, x = np.mgrid[:height, :width] + 0.5
    across, down = x / width, y / height
    return Image.fromarray((128 + 60 * np.sin(14 * across + 3 * down**2) + 50 * down).clip(0, 255).astype(np.uint8))


def check_agree(mask: np.ndarray, pixels: np.ndarray) -> None:
    """A mask and a grey picture that were the same; the filters differ by a level or two, a pixel's shift by many."""
    assert (mask.dtype, mask.shape, mask.flags.c_contiguous) == (np.uint8, pixels.shape[:2], True)
    grey = pixels[..., 0].astype(float)
    assert np.abs(mask - grey).max() <= 4
    assert min(np.abs(np.roll(mask, step, 1) - grey).mean() for step in (-1, 1)) > 6


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(240, 160), (120, 80), (720, 480)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_stays_with_its_picture(orientation: int, size: tuple[int, int], flip: bool) -> None:
    """Through rotation, scale, crop and mirror, whatever the mask's own size and orientation."""
    picture, crop = turned(waves(), orientation), fit(240, 160, 64, 64, 0.2, 0.5)
    for of_mask in (1, orientation):
        mask = load_mask(turned(waves(*size), of_mask), probe(picture), crop, flip)
        check_agree(mask, load(picture, crop, flip, WHITE))


@pytest.mark.parametrize("crop", [fit(240, 160, 24, 200, 0.4, 0.5), fit(240, 160, 480, 320, 0.5, 0.5)])
def test_a_mask_stays_with_its_picture_where_most_is_cut_off_and_where_it_grows(crop: Crop) -> None:
    picture = encoded(waves(), "PNG")
    mask = load_mask(encoded(waves(), "PNG"), probe(picture), crop, False).astype(int)
    assert np.abs(mask - load(picture, crop, False, WHITE)[..., 0]).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_alpha_stays_with_its_picture(orientation: int, form: str) -> None:
    """White on black is as grey as its alpha says."""
    white = Image.new("RGB", (240, 160), WHITE)
    white.putalpha(waves())
    data = turned(white, orientation, form, **{"lossless": True} if form == "WEBP" else {})
    for flip in (False, True):
        pixels, mask = load_with_alpha(data, crop := fit(240, 160, 64, 64, 0.2, 0.5), flip, (0, 0, 0))
        assert mask is not None
        check_agree(mask, pixels)
        assert np.array_equal(pixels, load(data, crop, flip, (0, 0, 0)))


def test_the_alpha_of_a_palette() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    shades, _ = load_with_alpha(encoded(image, "PNG"), whole(3, 1), False, WHITE)
    for transparency, alpha in ((bytes([0, 77]), [0, 77, 255]), (1, [255, 0, 255])):
        pixels, mask = load_with_alpha(encoded(image, "PNG", transparency=transparency), whole(3, 1), False, WHITE)
        assert mask is not None
        assert mask.tolist() == [alpha]
        assert pixels[0, 2].tolist() == shades[0, 2].tolist()
    gif = load_with_alpha(encoded(image, "GIF", transparency=2), whole(3, 1), True, WHITE)[1]
    assert gif is not None
    assert gif.tolist() == [[0, 255, 255]]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_opaque_has_no_mask(form: str) -> None:
    opaque = halves().convert("RGBA") if form not in {"JPEG", "GIF"} else halves()
    data = encoded(opaque, form)
    pixels, mask = load_with_alpha(data, whole(40, 20), False, WHITE)
    assert mask is None
    assert np.array_equal(pixels, decoded(data))


def test_the_numbers_of_a_mask_count_as_they_are_stored(shared_data: Path) -> None:
    values = np.array([[0, 77, 255]], dtype=np.uint8)
    grey = Image.fromarray(values)
    palette = Image.fromarray(np.array([[2, 0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([77] * 3 + [255] * 3 + [0] * 3)
    white = Image.new("RGB", (3, 1), WHITE)
    white.putalpha(grey)
    with Image.open(shared_data / "odd_images" / "sample-xyb.jpg") as image:
        profile = image.info["icc_profile"]
    masks = [grey, grey.convert("RGB"), grey.convert("RGBA"), palette, white, Image.fromarray(values * np.uint16(257))]
    files = [encoded(mask, "PNG") for mask in masks] + [encoded(grey.convert("RGB"), "PNG", icc_profile=profile)]
    info = ImageInfo(3, 1, "JPEG")
    assert [load_mask(data, info, whole(3, 1), False).tolist() for data in files] == [values.tolist()] * len(files)
    two = encoded(Image.fromarray(values[:, [0, 2]]).convert("1"), "PNG")
    assert load_mask(two, ImageInfo(2, 1, "JPEG"), whole(2, 1), True).tolist() == [[255, 0]]


def test_a_mask_does_not_ring_around_its_edges() -> None:
    half = Image.new("L", (640, 320))
    half.paste(255, (320, 0, 640, 320))
    mask = load_mask(encoded(half, "PNG"), ImageInfo(640, 320, "JPEG"), fit(640, 320, 64, 32, 0.5, 0.5), False)
    assert np.unique(mask[:, :31]).tolist() == [0]
    assert np.unique(mask[:, 33:]).tolist() == [255]


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((100, 67), True),
        ((50, 33), True),
        ((50, 34), True),
        ((201, 134), True),
        ((3, 2), True),
        ((100, 66), False),
        ((67, 100), False),
        ((200, 200), False),
        ((50, 32), False),
    ],
)
def test_a_mask_has_the_aspect_of_its_picture(size: tuple[int, int], fits: bool) -> None:
    """To within the rounding of either side."""
    data, crop = encoded(Image.new("L", size, 9), "PNG"), fit(100, 67, 64, 48, 0.5, 0.5)
    if fits:
        assert np.unique(load_mask(data, ImageInfo(100, 67, "JPEG"), crop, False)).tolist() == [9]
        return
    with pytest.raises(
        DataFault, match=rf"^mask: {size[0]}×{size[1]} pixels, and its picture 100×67, which is another"
    ):
        load_mask(data, ImageInfo(100, 67, "JPEG"), crop, False)


def test_a_mask_is_held_to_the_limits_of_pictures() -> None:
    whole_mask = encoded(Image.effect_noise((200, 200), 80), "PNG")
    for data, reason in (
        (b"junk", "not a picture of any known format"),
        (whole_mask[: len(whole_mask) // 2], "OSError: image file is truncated"),
        (encoded(Image.new("1", (16000, 15000)), "PNG"), ".*240000000 pixels"),
        (encoded(Image.new("F", (200, 200)), "TIFF"), "floating-point"),
    ):
        with pytest.raises(DataFault, match=f"^mask: {reason}"):
            load_mask(data, ImageInfo(200, 200, "JPEG"), whole(200, 200), False)
