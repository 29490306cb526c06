"""Pictures in any format to sRGB pixels of an exact size: one correct path for all, one fast path for plain JPEG."""

import functools
import importlib
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
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from finetune.data.buckets import Crop
from finetune.errors import DataFault

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF", "JXL")
"""What Pillow is asked to read: it knows formats that run programs (EPS) or that nobody keeps pictures in."""
Image.init()
MAX_PIXELS = 178_956_970
"""Pictures above this are refused before they are decoded; Pillow refuses them too."""
MAX_BYTES = 256 << 20
"""Encoded pictures above this are refused before they are opened."""
EXIF_ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
DEEP_GREY = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
OVERSAMPLING = 1.75
"""Pixels per target pixel and side that must be left where the fast path decodes at 1/2, 1/4 or 1/8 of the size.

libjpeg-turbo has vector code for these scales alone: the others take longer than the whole picture. Below 1.75 what it
blurs begins to show (single photographs under 42 dB).
"""
MAX_WASTE = 4
"""Where the scaled picture has more than this many pixels per pixel that is kept, only the kept ones are computed."""

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
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Plugin:
    """A decoder that is not Pillow's own: it registers itself with Pillow when its module is imported."""

    format: str
    package: str
    """Where pip finds it."""
    module: str


HEIC = Plugin("HEIC", "pillow-heif", "pillow_heif.HeifImagePlugin")
JPEG_XL = Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
JXL_CODESTREAM, JXL_CONTAINER = b"\xff\n", b"\0\0\0\x0cJXL \r\n\x87\n"
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, of those sizes of which JPEG XL stores the height alone."""


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
    colours, _ = _decode(data, crop, background)
    return _fit(colours, crop, flip)


def load_with_alpha(
    data: bytes, crop: Crop, flip: bool, background: tuple[int, int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """As `load`, and how opaque the picture is: uint8 [crop.height, crop.width], 255 where it hides the background;
    None where it does so everywhere."""
    colours, alpha = _decode(data, crop, background)
    pixels = _fit(colours, crop, flip)
    if alpha is None or alpha.getextrema() == (255, 255):
        return pixels, None
    return pixels, _fit_mask(alpha, crop, flip)


def load_mask(data: bytes, info: ImageInfo, crop: Crop, flip: bool) -> npt.NDArray[np.uint8]:
    """A grey picture that says how much each pixel of another counts, cut as that one is.

    Its numbers count as they are stored, whatever its profile says; what is transparent counts as black.

    Args:
        info: of the picture that is masked, to whose size the mask is scaled.
        crop: of that picture; `flip` likewise.

    Returns:
        uint8 [crop.height, crop.width], 255 where a pixel counts fully.

    Raises:
        DataFault: the mask cannot be decoded whole, or has another aspect than the picture.
    """
    try:
        with _opened(data) as image:
            upright = _upright(image)
            mask = upright.convert("L")
            if upright.has_transparency_data:
                mask = ImageChops.multiply(mask, upright.convert("RGBA").getchannel("A"))
    except DataFault as fault:
        raise DataFault(f"mask: {fault}") from fault
    # A side of a mask that was made smaller or larger may be off by what was rounded, which is less than a pixel.
    if abs(mask.width * info.height - mask.height * info.width) >= max(info.width, info.height):
        sizes = f"{mask.width}×{mask.height} pixels, and its picture {info.width}×{info.height}"
        raise DataFault(f"mask: {sizes}, which is another aspect")
    return _fit_mask(mask, crop, flip)


def _decode(
    data: bytes, crop: Crop, background: tuple[int, int, int]
) -> tuple[npt.NDArray[np.uint8], Image.Image | None]:
    """The upright picture in sRGB, a plain JPEG perhaps at a part of its size: uint8 [height, width, 3]; its alpha, if
    it has any."""
    with _opened(data) as image:
        plain = _decode_plain_jpeg(data, image, crop) if _is_plain_jpeg(image) else None
        if plain is not None:
            return plain, None
        flat, alpha = _upright_srgb(image, background)
        return np.array(flat), alpha


def _upright_srgb(image: Image.Image, background: tuple[int, int, int]) -> tuple[Image.Image, Image.Image | None]:
    """An opened picture as 8-bit sRGB on a background, and its alpha, if it has any."""
    profile = image.info.get("icc_profile")
    image = _upright(image)
    if not image.has_transparency_data:
        return _to_srgb(image, profile), None
    with_alpha = image.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    flat = Image.new("RGB", image.size, background)
    # A picture's profile describes its colours alone, which is why alpha goes around the conversion.
    flat.paste(_to_srgb(with_alpha.convert("RGB"), profile), mask=alpha)
    return flat, alpha


def _upright(image: Image.Image) -> Image.Image:
    """The first frame of an opened picture, EXIF rotation undone, with 8 bits a channel."""
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_GREY:
        grey = np.asarray(image).astype(np.float64) / 257.0  # 65,535 becomes 255
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise DataFault("floating-point pixels have no defined white")
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in {"RGB", "L", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            # An unusable profile, or one of another colour space: as browsers do, ignore it.
            return image.convert("RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether 8-bit RGB or grey comes straight out of the decoder: no rotation, no profile but sRGB's own."""
    if image.format != "JPEG" or image.mode not in {"RGB", "L"} or _orientation(image) not in {0, 1}:
        return False
    profile = image.info.get("icc_profile")
    return not profile or b"sRGB IEC61966-2.1" in profile or b"s\0R\0G\0B\0 \0I\0E\0C" in profile


def _decode_plain_jpeg(data: bytes, image: Image.Image, crop: Crop) -> npt.NDArray[np.uint8] | None:
    """Decode with libjpeg-turbo, at a reduced scale where the picture is much larger than needed.

    Returns uint8 [height, width, 3]; None where it would complain, so that the correct path judges.
    """
    spare = min(image.width / crop.scaled_width, image.height / crop.scaled_height) / OVERSAMPLING
    shrink = max(factor for factor in (1, 2, 4, 8) if factor <= max(spare, 1))
    width, height = (-(-side // shrink) for side in image.size)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_width=width, min_height=height
        )
    except ValueError:
        return None
    return pixels


def _fit(colours: npt.NDArray[np.uint8], crop: Crop, flip: bool) -> npt.NDArray[np.uint8]:
    """A picture scaled, cut and mirrored: uint8 [crop.height, crop.width, 3]."""
    cut = _scale_and_cut(colours, crop)
    pixels: npt.NDArray[np.uint8] = (cut.flip(1) if flip else cut).contiguous().numpy()
    return pixels


def _scale_and_cut(pixels: npt.NDArray[np.uint8], crop: Crop) -> torch.Tensor:
    """uint8 [any, any, 3] to uint8 [crop.height, crop.width, 3], through Lanczos' filter.

    Torch's is Pillow's with vector code: five times as fast, and a step or two off here and there; only in clipping
    noise does it show that Pillow may scale the height first. It works in integers on one thread, so the pixels depend
    on neither the processor nor the number of threads.
    """
    if crop.scaled_width * crop.scaled_height > MAX_WASTE * crop.width * crop.height:
        return _cut_and_scale(pixels, crop)
    # In this order of axes torch sees that the colours of a pixel lie together, and need not copy them apart and back.
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    size = (crop.scaled_height, crop.scaled_width)
    scaled = torch.nn.functional.interpolate(planes, size, mode="lanczos", antialias=True)[0].permute(1, 2, 0)
    return scaled[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _cut_and_scale(pixels: npt.NDArray[np.uint8], crop: Crop) -> torch.Tensor:
    """As `_scale_and_cut`, for a picture so long and thin that most of it is cut off."""
    return torch.from_numpy(np.array(_resized(Image.fromarray(pixels), crop, Image.Resampling.LANCZOS)))


def _fit_mask(mask: Image.Image, crop: Crop, flip: bool) -> npt.NDArray[np.uint8]:
    """A mask of 8 bits scaled and cut: uint8 [crop.height, crop.width]. Lanczos' filter would ring around its edges."""
    cut = _resized(mask, crop, Image.Resampling.BILINEAR)
    return np.array(ImageOps.mirror(cut) if flip else cut)


def _resized(image: Image.Image, crop: Crop, method: Image.Resampling) -> Image.Image:
    """What a crop keeps, antialiased; `image` may have any size."""
    across, down = image.width / crop.scaled_width, image.height / crop.scaled_height
    right, bottom = crop.left + crop.width, crop.top + crop.height
    box = (crop.left * across, crop.top * down, right * across, bottom * down)
    return image.resize((crop.width, crop.height), method, box=box)


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(EXIF_ORIENTATION, 0) or 0)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An opened picture within its limits; whatever goes wrong with it inside becomes a DataFault."""
    if len(data) > MAX_BYTES:
        raise DataFault(f"{len(data):,} bytes, above the limit of {MAX_BYTES:,}")
    plugin = _plugin_for(data)
    if plugin and not _register(plugin):
        raise DataFault(f"{plugin.format}, which needs the package {plugin.package}")
    try:
        _check_container(data, plugin)
        with warnings.catch_warnings():
            # Broken EXIF and large sizes are judged here, and not by words on stderr.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _check_size(*image.size)
                yield image
    except UnidentifiedImageError as error:
        raise DataFault("not a picture of any known format") from error
    except UNDECODABLE as error:
        name = type(error).__name__
        raise DataFault(f"{name}: {str(error).splitlines()[0] if str(error) else 'no reason given'}") from error


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise DataFault(f"{width}×{height} pixels, outside the limits of 1 to {MAX_PIXELS:,}")


def _plugin_for(data: bytes) -> Plugin | None:
    """The plugin without which this picture cannot be decoded."""
    if data.startswith((JXL_CODESTREAM, JXL_CONTAINER)):
        return JPEG_XL
    kind, start, end = next(_boxes(data), (b"", 0, 0))
    brands = {data[i : i + 4] for i in range(start, min(end, start + 256), 4)}
    if kind == b"ftyp" and brands & HEIC_BRANDS:
        return HEIC
    return None


@functools.cache
def _register(plugin: Plugin) -> bool:
    """Have Pillow know a plugin's format; False where the plugin is not installed."""
    try:
        importlib.import_module(plugin.module)
    except ImportError:
        return False
    return True


def _check_container(data: bytes, plugin: Plugin | None) -> None:
    """Judge what the plugins do not: one fills in what is missing, the other decodes as soon as it opens."""
    if plugin is HEIC and any(end > len(data) for _, _, end in _boxes(data)):
        raise DataFault("HEIC, truncated")
    if plugin is JPEG_XL:
        _check_size(*_jpeg_xl_size(data))


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an ISO media file: their kind, where their content starts, and where the file says that it ends."""
    at = 0
    while at + 8 <= len(data):
        length, kind, start = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8]), start + 8
        elif length == 0:
            length = len(data) - at
        if at + length < start:
            return
        yield kind, start, at + length
        at += length


def _jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels, from the first bits of the codestream."""
    start = 0
    if not data.startswith(JXL_CODESTREAM):
        # A codestream in parts has a number of four bytes before each.
        starts = {b"jxlc": 0, b"jxlp": 4}
        start = next((at + starts[kind] for kind, at, _ in _boxes(data) if kind in starts), len(data))
    bits = int.from_bytes(data[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)
    height = (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1
    ratio = take(3)
    if ratio:
        across, down = JXL_RATIOS[ratio - 1]
        return height * across // down, height
    return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1, height
