"""Pictures: the correct path, the fast path, and a defined end for every odd file."""

import contextlib
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from finetune.data import images
from finetune.data.buckets import Crop, bucket_sizes, fit, nearest_bucket
from finetune.data.config import BucketsConfig
from finetune.data.images import load, probe
from finetune.errors import DataFault

WHITE = (255, 255, 255)
REFUSED = {
    "incomplete_image.jpg": "truncated",
    "truncated_image.png": "truncated",
    "xhdn0g08.png": "not a picture",
    "broken.png": "not a picture",
    "zero_width.gif": "not a picture",
    "rgb32f_color.tiff": "not a picture",
    "basic.jxl": "not a picture",
    "IMG_2927.HEIC": "not a picture",
    "png_decompression_dos.png": "Decompressed data too large",
    "decompression_bomb.gif": "exceeds limit",
}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def whole(width: int, height: int) -> Crop:
    return Crop(width, height, 0, 0, width, height)


def decoded(data: bytes, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    info = probe(data)
    return load(data, whole(info.width, info.height), False, background)


def halves() -> Image.Image:
    """Red on the left, blue on the right; 40×20."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = halves()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    assert (probe(data).width, probe(data).height) == (40, 20)
    assert np.array_equal(decoded(data), np.asarray(upright))


def test_deep_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decoded(encoded(Image.fromarray(ramp), "PNG"))
    assert np.abs(pixels[..., 0] - np.rint(ramp / 257)).max() <= 0


def test_alpha_is_laid_on_the_background() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 0, 0))
    image.putpixel((0, 0), (200, 100, 0, 255))
    pixels = decoded(encoded(image, "PNG"), (10, 20, 30))
    assert pixels[0, 0].tolist() == [200, 100, 0]
    assert pixels[3, 3].tolist() == [10, 20, 30]


def test_srgb_s_own_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 8), (30, 180, 60))
    kept = decoded(encoded(image, "PNG", icc_profile=srgb))
    assert np.abs(kept.astype(int) - [30, 180, 60]).max() <= 1


def test_a_profile_of_another_space_changes_the_pixels(shared_data: Path) -> None:
    data = (shared_data / "odd_images" / "sample-xyb.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        unmanaged = np.asarray(image.convert("RGB")).astype(float)
    assert np.abs(decoded(data) - unmanaged).mean() > 20


def test_flip_mirrors_the_cut() -> None:
    crop = Crop(10, 20, 0, 0, 40, 20)
    assert load(encoded(halves(), "PNG"), crop, False, WHITE)[0, 0].tolist() == [255, 0, 0]
    straight = load(encoded(halves(), "PNG"), whole(40, 20), False, WHITE)
    flipped = load(encoded(halves(), "PNG"), whole(40, 20), True, WHITE)
    assert np.array_equal(flipped, straight[:, ::-1])


def test_the_cut_is_where_the_crop_says() -> None:
    pixels = load(encoded(halves(), "PNG"), Crop(20, 20, 20, 0, 40, 20), False, WHITE)
    assert pixels.shape == (20, 20, 3)
    assert (pixels[:, 3:] == [0, 0, 255]).all()


def test_odd_files_have_a_defined_outcome(shared_data: Path) -> None:
    with (shared_data / "odd_images" / "MANIFEST.csv").open() as manifest:
        names = [row["file"] for row in csv.DictReader(manifest)]
    assert set(REFUSED) < set(names)
    for name in names:
        data = (shared_data / "odd_images" / name).read_bytes()
        if name in REFUSED:
            with pytest.raises(DataFault, match=REFUSED[name]):
                load(data, fit(probe(data).width, probe(data).height, 64, 64, 0.5, 0.5), False, WHITE)
        else:
            info = probe(data)
            pixels = load(data, fit(info.width, info.height, 64, 64, 0.5, 0.5), False, WHITE)
            assert pixels.shape == (64, 64, 3)
            assert pixels.flags.c_contiguous
            assert pixels.std() > 0 or name in {"s01n3p01.png", "big-height.webp"}


def test_the_fast_path_sees_what_the_correct_one_sees(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = bucket_sizes(BucketsConfig(768, 1024, 32))
    plain, worst = 0, np.inf
    for path in sorted((shared_data / "photos" / "cameras").glob("*.jpg"))[::3]:
        data = path.read_bytes()
        info = probe(data)
        width, height = sizes[nearest_bucket([info.width], [info.height], sizes)[0]]
        crop = fit(info.width, info.height, int(width), int(height), 0.5, 0.5)
        with images._opened(data) as image:
            if not images._is_plain_jpeg(image):
                continue
        plain += 1
        fast = load(data, crop, False, WHITE).astype(float)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_is_plain_jpeg", lambda image: False)
            correct = load(data, crop, False, WHITE).astype(float)
        worst = min(worst, 10 * np.log10(255**2 / max(((fast - correct) ** 2).mean(), 1e-9)))
    assert plain > 10
    assert worst > 42  # dB


def test_a_jpeg_cut_short_is_a_fault_on_either_path() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(DataFault, match="truncated"):
        decoded(data[: len(data) // 2])


@given(st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.integers(0, 400))
def test_damaged_bytes_never_raise_anything_but_a_fault(noise: bytes, form: str, where: int) -> None:
    data = encoded(halves(), form)
    with contextlib.suppress(DataFault):
        assert decoded(data[:where] + noise + data[where + len(noise) :]).dtype == np.uint8
