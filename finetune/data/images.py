"""Pictures in any format to sRGB pixels of an exact size: one correct path for all, one fast path for plain JPEG."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from finetune.data.buckets import Crop
from finetune.errors import DataFault

MAX_PIXELS = 178_956_970
"""Pictures above this are refused before they are decoded; Pillow refuses them too."""
EXIF_ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
DEEP_GREY = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
OVERSAMPLING = 1.5
"""The fast path decodes at the smallest of libjpeg's scales that leaves this many pixels per target pixel and side."""

# What Pillow's decoders raise on bytes that are no proper picture. The bytes are in memory, so no OSError is I/O.
UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageInfo:
    """What the header says."""

    width: int
    """Pixels, after EXIF rotation."""
    height: int
    """Pixels, after EXIF rotation."""
    format: str
    """Pillow's name of the format."""


def probe(data: bytes) -> ImageInfo:
    """Read a picture's header. Raises DataFault where it cannot be opened, is empty or is too large."""
    with _opened(data) as image:
        width, height = image.size
        if _orientation(image) in SIDEWAYS:
            width, height = height, width
        return ImageInfo(width, height, image.format or "")


def load(data: bytes, crop: Crop, flip: bool, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Decode, turn upright, convert to sRGB, scale and cut.

    Args:
        crop: of the picture after EXIF rotation.
        flip: mirror horizontally, after the cut.
        background: RGB on which transparent pixels are laid.

    Returns:
        uint8 [crop.height, crop.width, 3].

    Raises:
        DataFault: the picture cannot be decoded whole.
    """
    with _opened(data) as image:
        decoded = _decode_plain_jpeg(data, crop) if _is_plain_jpeg(image) else None
        upright = decoded or upright_srgb(image, background)
        box = (
            crop.left / crop.scaled_width * upright.width,
            crop.top / crop.scaled_height * upright.height,
            (crop.left + crop.width) / crop.scaled_width * upright.width,
            (crop.top + crop.height) / crop.scaled_height * upright.height,
        )
        cut = upright.resize((crop.width, crop.height), Image.Resampling.LANCZOS, box=box)
    return np.ascontiguousarray(np.asarray(ImageOps.mirror(cut) if flip else cut))


def upright_srgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The first frame of an opened picture, EXIF rotation undone, as 8-bit sRGB on a background."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_GREY:
        grey = np.asarray(image).astype(np.float64) / 257.0  # 65,535 becomes 255
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise DataFault("floating-point pixels have no defined white")
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    with_alpha = image.convert("RGBA")
    flat = Image.new("RGB", image.size, background)
    # A picture's profile describes its colours alone, which is why alpha goes around the conversion.
    flat.paste(_to_srgb(with_alpha.convert("RGB"), profile), mask=with_alpha.getchannel("A"))
    return flat


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in {"RGB", "L", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return image.convert(
                "RGB"
            )  # an unusable profile, or one of another colour space: as browsers do, ignore it
        if converted is not None:
            return converted
    return image.convert("RGB")


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether 8-bit RGB or grey comes straight out of the decoder: no rotation, no profile but sRGB's own."""
    if image.format != "JPEG" or image.mode not in {"RGB", "L"} or _orientation(image) not in {0, 1}:
        return False
    profile = image.info.get("icc_profile")
    return not profile or b"sRGB IEC61966-2.1" in profile or b"s\0R\0G\0B\0 \0I\0E\0C" in profile


def _decode_plain_jpeg(data: bytes, crop: Crop) -> Image.Image | None:
    """Decode with libjpeg-turbo at a reduced scale; None where it would complain, so that the correct path judges."""
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            min_width=round(crop.scaled_width * OVERSAMPLING),
            min_height=round(crop.scaled_height * OVERSAMPLING),
        )
    except ValueError:
        return None
    return Image.fromarray(pixels)


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(EXIF_ORIENTATION, 0) or 0)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An opened picture within its limits; whatever goes wrong with it inside becomes a DataFault."""
    try:
        with warnings.catch_warnings():
            # Broken EXIF and large sizes are judged here, and not by words on stderr.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS or not image.width * image.height:
                    raise DataFault(f"{image.width}×{image.height} pixels")
                yield image
    except UnidentifiedImageError as error:
        raise DataFault("not a picture of any known format") from error
    except UNDECODABLE as error:
        name = type(error).__name__
        raise DataFault(f"{name}: {str(error).splitlines()[0] if str(error) else 'no reason given'}") from error
