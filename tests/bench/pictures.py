"""Pictures to measure with, and shards of them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image, ImageOps

from data_tools.indexing import index_folder
from finetune.data.buckets import Crop, assign_buckets, bucket_sizes, fit
from finetune.data.config import BucketsConfig

BUCKETS = BucketsConfig(resolution_px=768, max_side_px=1024, step_px=32)
"""As in conf/data/px768.yaml."""
FOLDERS = ("kodak", "clic2025", "dreambooth", "cameras")
LEAST_PIXELS, MOST_PIXELS = 1_000_000, 4_000_000
QUALITY, SUBSAMPLING = 92, "4:2:0"
WORDS = ("red", "fox", "snow", "forest", "river", "night", "rain", "city", "portrait", "detailed", "soft", "light")
TAGS = 24


def pictures(shared: Path | None) -> Iterator[Image.Image]:
    """Real photographs of 1 to 4 megapixels, or synthetic ones where there are none.

    Args:
        shared: the folder of real test data.
    """
    for picture in _synthetic() if shared is None else _photographs(shared / "photos"):
        area = picture.width * picture.height
        scale = (np.clip(area, 1.001 * LEAST_PIXELS, 0.999 * MOST_PIXELS) / area) ** 0.5
        size = (round(picture.width * scale), round(picture.height * scale))
        within = LEAST_PIXELS <= area <= MOST_PIXELS
        yield picture if within else picture.resize(size, Image.Resampling.LANCZOS)


def kind(shared: Path | None) -> str:
    """What `pictures` gives, in words."""
    return "synthetic pictures" if shared is None else "photographs"


def jpeg(picture: Image.Image) -> bytes:
    """A picture as a camera or an image host would store it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.getvalue()


def centre_crop(width: int, height: int) -> Crop:
    """How a picture of a size is cut to its bucket."""
    bucket = assign_buckets(np.array([width]), np.array([height]), BUCKETS)[0]
    bucket_width, bucket_height = (int(side) for side in bucket_sizes(BUCKETS)[bucket])
    return fit(width, height, bucket_width, bucket_height, 0.5, 0.5)


def shrunk(picture: Image.Image) -> Image.Image:
    """A picture at the size at which it covers its bucket, as data sets for training are often kept."""
    crop = centre_crop(*picture.size)
    return picture.resize((crop.scaled_width, crop.scaled_height), Image.Resampling.LANCZOS)


def write_shards(folder: Path, encoded: list[bytes], *, shards: int, samples: int) -> Path:
    """Shards of so many samples each with their index: the pictures over and over, each time with other labels."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for i in range(shard * samples, (shard + 1) * samples):
                tar.write({"__key__": f"{i:09d}", "jpg": encoded[i % len(encoded)], "json": _labels(i)})
    index_folder(folder, "auto", 1)
    return folder


def _labels(number: int) -> bytes:
    words = np.random.default_rng(number).choice(WORDS, (TAGS, 2))
    fields = {"tags": [" ".join(pair) for pair in words], "caption": " ".join(words[:, 0])}
    return json.dumps(fields).encode()


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
