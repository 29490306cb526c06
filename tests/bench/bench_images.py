"""JPEG to a bucket of 768² pixels: what a CPU-second yields next to plain Pillow, and how close the pixels are."""

import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from finetune.data.buckets import Crop, assign_buckets, bucket_sizes, fit
from finetune.data.config import BucketsConfig
from finetune.data.images import load
from tests.bench.figure import Figure

BUCKETS = BucketsConfig(resolution_px=768, max_side_px=1024, step_px=64)
FOLDERS = ("kodak", "clic2025", "dreambooth", "cameras")
LEAST_PIXELS, MOST_PIXELS = 1_000_000, 4_000_000
REPEATS = 5
WHITE = (255, 255, 255)
U8 = npt.NDArray[np.uint8]


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Images per CPU-second as a ratio, picture by picture in turns, and the mean PSNR against the reference.

    Args:
        work: unused; nothing is written.
        shared: the folder of real photographs; None for synthetic ones.
    """
    ratios, decibels, seconds = [], [], np.zeros(2)
    for picture in _synthetic() if shared is None else _photographs(shared / "photos"):
        data, crop = _jpeg(picture)
        pairs = np.array([(_cpu(_reference, data, crop), _cpu(_fast, data, crop)) for _ in range(REPEATS)])
        ratios.append(statistics.median(pairs[:, 0] / pairs[:, 1]))
        seconds += np.median(pairs, axis=0)
        decibels.append(_psnr(_fast(data, crop), _reference(data, crop)))
    kind = "synthetic pictures" if shared is None else "photographs"
    yield Figure(
        "data.jpeg_768_vs_pillow",
        float(statistics.median(ratios)),
        "ratio",
        f"CPU time of Pillow / ours, median of {len(ratios)} {kind} of 1–4 megapixels (quality 92, 4:2:0), each the "
        f"median of {REPEATS} pairs; {seconds[0] / seconds[1]:.2f} over all; "
        f"{len(ratios) / seconds[1]:.0f} images a CPU-second",
    )
    yield Figure(
        "data.psnr_768_db",
        float(np.mean(decibels)),
        "dB",
        f"mean of {len(decibels)} {kind} against Pillow's full decode and LANCZOS; lowest {min(decibels):.1f}",
    )


def _photographs(folder: Path) -> Iterator[Image.Image]:
    files = [path for name in FOLDERS for path in (folder / name).rglob("*")]
    for path in sorted(path for path in files if path.suffix.lower() in {".png", ".jpg", ".jpeg"}):
        with Image.open(path) as image:
            yield ImageOps.exif_transpose(image).convert("RGB")


def _synthetic() -> Iterator[Image.Image]:
    """Clouds in weak colours, as hard to compress as the photographs: 1.4 to 1.9 bits a pixel, where those have 1.6."""
    random = np.random.default_rng(0)
    for width, height in ((1280, 853), (1440, 1440), (2048, 1536), (1200, 1800)):
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        spectrum = np.fft.rfft2(random.normal(size=(3, height, width)))
        clouds = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / width) ** 1.5, s=(height, width))
        luma, red, blue = 48 * clouds / clouds.std(axis=(1, 2), keepdims=True) * np.array([1, 0.3, 0.3])[:, None, None]
        pixels = 128 + np.stack([luma + red, luma, luma + blue], axis=2)
        yield Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image) -> tuple[bytes, Crop]:
    """A picture of 1 to 4 megapixels as JPEG, and its crop to the nearest bucket."""
    area = picture.width * picture.height
    scale = (np.clip(area, 1.001 * LEAST_PIXELS, 0.999 * MOST_PIXELS) / area) ** 0.5
    if not LEAST_PIXELS <= area <= MOST_PIXELS:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling="4:2:0")
    bucket = assign_buckets(np.array([picture.width]), np.array([picture.height]), BUCKETS)[0]
    width, height = (int(side) for side in bucket_sizes(BUCKETS)[bucket])
    return buffer.getvalue(), fit(picture.width, picture.height, width, height, 0.5, 0.5)


def _reference(data: bytes, crop: Crop) -> U8:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    across, down = image.width / crop.scaled_width, image.height / crop.scaled_height
    right, bottom = crop.left + crop.width, crop.top + crop.height
    box = (crop.left * across, crop.top * down, right * across, bottom * down)
    return np.asarray(image.resize((crop.width, crop.height), Image.Resampling.LANCZOS, box=box))


def _fast(data: bytes, crop: Crop) -> U8:
    return load(data, crop, False, WHITE)


def _cpu(decode: Callable[[bytes, Crop], Any], data: bytes, crop: Crop) -> float:
    start = time.process_time()
    decode(data, crop)
    return time.process_time() - start


def _psnr(one: U8, other: U8) -> float:
    error = ((one.astype(np.float64) - other) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
