"""Pictures: the correct path, the fast path, and a defined end for every odd file."""

import contextlib
import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from finetune.data import images
from finetune.data.buckets import Crop, assign_buckets, bucket_sizes, fit
from finetune.data.config import BucketsConfig
from finetune.data.images import load, probe
from finetune.errors import DataFault

WHITE = (255, 255, 255)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")
ODD: dict[str, tuple[tuple[int, int], tuple[float, float, float]] | str] = {
    "pil_sample_cmyk.jpg": ((100, 100), (30.2, 5.4, 7.4)),
    "speed_bench_prog.jpg": ((7680, 4320), (196.1, 194.8, 190.8)),
    "down_sampled_grayscale_prog.jpg": ((900, 675), (160.9, 160.9, 160.9)),
    "fox410.jpg": ((605, 806), (114.8, 112.8, 107.7)),
    "incomplete_image.jpg": "image file is truncated",
    "large_vertical_samp_7680_4320.jpg": ((7680, 4320), (196.1, 194.8, 190.8)),
    "hopper_gray.jpg": ((128, 128), (84.7, 84.7, 84.7)),
    "icc_profile_big.jpg": ((425, 250), (59.5, 121.6, 176.5)),
    "sample-xyb.jpg": ((290, 442), (127.2, 118.0, 108.7)),
    "hopper_bad_exif.jpg": ((500, 500), (125.5, 125.5, 125.5)),
    "frozenpond.mpo": ((640, 480), (108.2, 104.0, 100.6)),
    "Landscape_6.jpg": ((1800, 1200), (98.4, 115.7, 134.2)),
    "hopper_orientation_8.webp": ((128, 128), (89.7, 80.2, 95.5)),
    "exif_imagemagick_orientation.png": ((512, 512), (144.5, 142.6, 143.1)),
    "basn0g16.png": ((32, 32), (144.2, 144.2, 144.2)),
    "basn2c16.png": ((32, 32), (127.5, 127.5, 43.8)),
    "basn4a16.png": ((32, 32), (214.5, 214.5, 214.5)),
    "basn0g01.png": ((32, 32), (124.5, 124.5, 124.5)),
    "tbbn3p08.png": ((32, 32), (167.1, 174.4, 169.3)),
    "s01n3p01.png": ((1, 1), (0, 0, 255)),
    "xhdn0g08.png": "not a picture of any known format",
    "rgba.png": ((128, 128), (206.9, 204.4, 208.6)),
    "truncated_image.png": "image file is truncated",
    "broken.png": "not a picture of any known format",
    "png_decompression_dos.png": "Decompressed data too large",
    "icc_profile.png": ((57, 57), (200.8, 182.3, 170.5)),
    "iss634.apng": ((245, 245), (134.6, 136.6, 90.2)),
    "iss634.webp": ((245, 245), (134.6, 136.6, 90.2)),
    "transparent.gif": ((200, 150), (211.0, 202.7, 204.1)),
    "decompression_bomb.gif": r"4364696535 pixels\) exceeds limit",
    "zero_width.gif": "not a picture of any known format",
    "big-height.webp": ((13, 169), (255, 0, 0)),
    "hopper.avif": ((128, 128), (89.8, 79.9, 95.6)),
    "rgb-3c-16b.tiff": ((157, 151), (150.0, 115.8, 66.3)),
    "rgb32f_color.tiff": "not a picture of any known format",
    "basic.jxl": ((1, 1), (255, 43, 37)),
    "IMG_2927.HEIC": ((3024, 4032), (87.2, 120.1, 155.5)),
}
"""What becomes of each odd file: (width, height) after rotation and its mean colour on white, or why it is refused.

The colours are libvips', but for CMYK without a profile, which has no defined colours, and the last two.
"""
NEEDS = {"basic.jxl": images.JPEG_XL, "IMG_2927.HEIC": images.HEIC}
WITHOUT_PLUGINS = """
import sys
from pathlib import Path
sys.modules["pillow_heif"] = sys.modules["pillow_jxl"] = None
from finetune.data.images import probe
from finetune.errors import DataFault
for name in ("IMG_2927.HEIC", "basic.jxl"):
    try:
        probe((Path(sys.argv[1]) / name).read_bytes())
    except DataFault as fault:
        print(fault)
"""
BOMBS = """
import resource, sys
from pathlib import Path
from finetune.data.images import probe
from finetune.errors import DataFault
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        probe(data)
    except DataFault as fault:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(path.name, grown, fault, sep="|")
"""


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


def turned(upright: Image.Image, orientation: int, form: str = "PNG", **options: object) -> bytes:
    """A picture that only its EXIF orientation shows upright."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    return encoded(stored, form, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = halves()
    data = turned(upright, orientation)
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


def test_every_odd_file_is_in_the_table(shared_data: Path) -> None:
    assert set(ODD) == {path.name for path in (shared_data / "odd_images").iterdir()} - {"MANIFEST.csv"}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_have_a_defined_outcome(name: str, shared_data: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name].module)
    data = (shared_data / "odd_images" / name).read_bytes()
    outcome = ODD[name]
    if isinstance(outcome, str):
        with pytest.raises(DataFault, match=outcome):
            decoded(data)
        return
    size, colour = outcome
    info = probe(data)
    assert (info.width, info.height) == size
    assert decoded(data).mean(axis=(0, 1)) == pytest.approx(colour, abs=1.5)
    cut = load(data, fit(info.width, info.height, 64, 128, 0.5, 0.5), True, WHITE)
    assert cut.shape == (128, 64, 3)
    assert cut.flags.c_contiguous


def test_a_format_without_its_plugin_is_refused_by_the_name_of_the_package(shared_data: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_PLUGINS, str(shared_data / "odd_images")]
    refused = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert refused == [
        "HEIC, which needs the package pillow-heif",
        "JPEG XL, which needs the package pillow-jxl-plugin",
    ]


def test_a_heic_file_cut_short_is_a_fault(shared_data: Path) -> None:
    pytest.importorskip(images.HEIC.module)
    data = (shared_data / "odd_images" / "IMG_2927.HEIC").read_bytes()
    with pytest.raises(DataFault, match="truncated"):
        probe(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(301, 200), (8, 256), (1000, 1000), (1600, 900), (20000, 3)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    pytest.importorskip(images.JPEG_XL.module)
    bare = encoded(Image.new("RGB", size), "JXL")
    boxed = images.JXL_CONTAINER + (len(bare) + 8).to_bytes(4, "big") + b"jxlc" + bare
    assert images._jpeg_xl_size(bare) == size
    assert images._jpeg_xl_size(boxed) == size


def text_bomb(kind: bytes, header: bytes) -> bytes:
    """A PNG with a chunk of text (or a colour profile) of 100 MiB."""
    content = kind + header + zlib.compress(bytes(100 << 20))
    chunk = (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    png = encoded(Image.new("RGB", (8, 8)), "PNG")
    return png[:33] + chunk + png[33:]


def test_bombs_are_refused_from_their_header(tmp_path: Path) -> None:
    """240 megapixels, or text that unpacks to 100 MiB: refused without the memory for it."""
    (tmp_path / "png").write_bytes(encoded(Image.new("1", (16000, 15000)), "PNG"))
    (tmp_path / "jpeg").write_bytes(encoded(Image.new("L", (16000, 15000), 128), "JPEG"))
    (tmp_path / "zTXt").write_bytes(text_bomb(b"zTXt", b"k\0\0"))
    (tmp_path / "iTXt").write_bytes(text_bomb(b"iTXt", b"k\0\1\0\0\0"))
    (tmp_path / "iCCP").write_bytes(text_bomb(b"iCCP", b"k\0\0"))
    command = [sys.executable, "-c", BOMBS, str(tmp_path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    refused = {name: (int(grown), why) for name, grown, why in (line.split("|") for line in lines)}
    assert refused.keys() == {"png", "jpeg", "zTXt", "iTXt", "iCCP"}
    assert max(grown for grown, _ in refused.values()) < 50_000  # KiB
    assert all("240000000 pixels" in refused[name][1] for name in ("png", "jpeg"))
    assert all("too large" in refused[name][1] for name in ("zTXt", "iTXt", "iCCP"))


def test_the_limits_hold_without_pillow_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (16000, 15000)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataFault, match="16000×15000 pixels"):
        probe(bomb)
    monkeypatch.setattr(images, "MAX_BYTES", len(bomb) - 1)
    with pytest.raises(DataFault, match=f"{len(bomb):,} bytes"):
        probe(bomb)


def test_a_jpeg_xl_bomb_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_register", lambda plugin: True)
    height, width = 15000 - 1, 16000 - 1
    bits = (2 | height << 2) << 1 | 0 << 21 | (2 | width << 2) << 24  # both of 18 bits, no ratio
    with pytest.raises(DataFault, match="16000×15000 pixels"):
        probe(images.JXL_CODESTREAM + bits.to_bytes(12, "little"))


def test_a_long_thin_picture_costs_no_more_than_what_is_kept() -> None:
    data = encoded(Image.linear_gradient("L").resize((8, 20000)), "PNG")
    cut = load(data, fit(8, 20000, 512, 768, 0.5, 0.5), False, WHITE)
    assert cut.shape == (768, 512, 3)
    assert np.abs(cut.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("flip", [False, True])
def test_either_way_of_cutting_gives_the_same_pixels(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((500, 300), 80).convert("RGB")
    data, crop = encoded(noise, "PNG"), fit(500, 300, 128, 192, 0.3, 0.7)
    whole_first = load(data, crop, flip, WHITE).astype(int)
    monkeypatch.setattr(images, "MAX_WASTE", 0)
    assert np.abs(load(data, crop, flip, WHITE) - whole_first).max() <= 1


def test_pixels_do_not_depend_on_the_number_of_threads() -> None:
    data, crop = encoded(Image.effect_noise((900, 700), 80), "JPEG"), fit(900, 700, 512, 448, 0.5, 0.5)
    before, pixels = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        pixels.append(load(data, crop, False, WHITE))
    torch.set_num_threads(before)
    assert np.array_equal(*pixels)


def test_the_fast_path_sees_what_the_correct_one_sees(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = BucketsConfig(resolution_px=768, max_side_px=1024, step_px=64)
    plain, worst = 0, np.inf
    for path in sorted((shared_data / "photos" / "cameras").glob("*.jpg"))[::3]:
        data = path.read_bytes()
        info = probe(data)
        bucket = assign_buckets(np.array([info.width]), np.array([info.height]), buckets)[0]
        width, height = bucket_sizes(buckets)[bucket]
        crop = fit(info.width, info.height, int(width), int(height), 0.5, 0.5)
        with images._opened(data) as image:
            if not images._is_plain_jpeg(image):
                continue
        plain += 1
        fast = load(data, crop, False, WHITE).astype(float)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_is_plain_jpeg", lambda image: False)
            patch.setattr(images, "_scale_and_cut", images._cut_and_scale)
            correct = load(data, crop, False, WHITE).astype(float)
        worst = min(worst, 10 * np.log10(255**2 / max(((fast - correct) ** 2).mean(), 1e-9)))
    assert plain > 10
    assert worst > 42  # dB


def test_a_jpeg_cut_short_is_a_fault_on_either_path() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(DataFault, match="truncated"):
        decoded(data[: len(data) // 2])


@given(
    st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"]), st.integers(0, 400)
)
def test_damaged_bytes_never_raise_anything_but_a_fault(noise: bytes, form: str, where: int) -> None:
    data = encoded(halves(), form)
    with contextlib.suppress(DataFault):
        assert decoded(data[:where] + noise + data[where + len(noise) :]).dtype == np.uint8
