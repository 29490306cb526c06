"""JPEG to a bucket of 768² pixels: what a CPU-second yields next to plain Pillow, and how close the pixels are."""

import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.buckets import Crop
from finetune.data.images import load
from tests.bench.figure import Figure
from tests.bench.pictures import centre_crop, jpeg, kind, pictures

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
    for picture in pictures(shared):
        data, crop = jpeg(picture), centre_crop(*picture.size)
        pairs = np.array([(_cpu(_reference, data, crop), _cpu(_fast, data, crop)) for _ in range(REPEATS)])
        ratios.append(statistics.median(pairs[:, 0] / pairs[:, 1]))
        seconds += np.median(pairs, axis=0)
        decibels.append(_psnr(_fast(data, crop), _reference(data, crop)))
    yield Figure(
        "data.jpeg_768_vs_pillow",
        float(statistics.median(ratios)),
        "ratio",
        f"CPU time of Pillow / ours, median of {len(ratios)} {kind(shared)} of 1–4 megapixels (quality 92, 4:2:0), "
        f"each the median of {REPEATS} pairs; {min(ratios):.2f} to {max(ratios):.2f}, "
        f"{seconds[0] / seconds[1]:.2f} over all; {len(ratios) / seconds[1]:.0f} images a CPU-second",
    )
    yield Figure(
        "data.psnr_768_db",
        float(np.mean(decibels)),
        "dB",
        f"mean of {len(decibels)} {kind(shared)} against Pillow's full decode and LANCZOS; lowest {min(decibels):.1f}",
    )


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
