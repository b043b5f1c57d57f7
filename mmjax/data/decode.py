"""Decoded images: bytes, a path or an array become `u8[H, W, 3]`, the same way in training and in serving.

With `decode_sheet` the one file that knows Pillow. What is done, in this order:

1. The format is read from the content, never from the suffix: JPEG, PNG, WebP, BMP and GIF (of an animation, the first
   frame; of an animated PNG, the still image). Anything else is refused by name.
2. Every mode becomes RGB (`to_rgb`). Transparency is composited over white. Colour profiles are ignored:
   sRGB is assumed.
3. The EXIF orientation is applied; damaged EXIF data count as none (they say nothing about the pixels).
4. Resize with an antialiased filter: `stretch` to exactly the size; `crop`: scaled until it covers, the centre is kept
   (with a `crop_share` s until it covers size / s, as in resize to 256, keep 224);
   `pad`: scaled until it fits, centred on black. An image of the right size passes untouched.

A JPEG more than twice as large as needed is decoded at 1/2, 1/4 or 1/8 by its DCT (never below twice the size needed),
then filtered: the same bytes always give the same pixels, several times faster than decoding all of a photograph.

Pillow's plugins are called directly because `Image.open` reports through Python warnings, which threads cannot catch.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, assert_never

import numpy as np
import PIL
from msgspec import UnsetType
from PIL import Image, ImageCms, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mmjax.data.image_bytes import (
    Format,
    exif_orientation,
    gif_size,
    identify,
    png_header,
    read_image_file,
    verified_png,
    webp_size,
)
from mmjax.errors import DataError
from mmjax.schema import ImageSpec

ImageInput = str | os.PathLike[str] | bytes | np.ndarray
"""A path, the bytes of a file, or pixels: u8[H, W], u8[H, W, 1|3|4], or 16-bit grey u16[H, W], u16[H, W, 1]."""

MAX_PIXELS = 178_956_970
"""Images of more pixels are refused before they are decoded (Pillow's own limit for a decompression bomb)."""
MAX_GIF_PIXELS = 89_478_485
"""Beyond this Pillow's GIF reader would warn."""

SIZE_FACTOR = 2
"""A JPEG is decoded at no less than so many times the size needed."""

DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, AttributeError, ArithmeticError)
DAMAGE += (RuntimeError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow's readers are known to raise on bytes that are not what they claim to be."""


class ImageInfo(NamedTuple):
    """What the header of an image says; the size is that of the upright image (EXIF orientation applied)."""

    format: str
    """JPEG, PNG, WebP, BMP, GIF, or `array`."""
    mode: str
    """Pillow's name of the pixel layout: L, P, RGB, RGBA, CMYK, I;16 ..."""
    width_px: int
    height_px: int


def decode_image(source: ImageInput, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image as `u8[spec.height_px, spec.width_px, 3]`, RGB, on the host.

    DataError, and nothing else, for any bytes that are no whole image of an allowed format.
    """
    try:
        return decode_plain(source, spec, max_pixels)
    except DataError as error:
        raise DataError(f"{_name(source)}: {error}") from error


def decode_images(
    spec: ImageSpec, sources: Sequence[ImageInput], *, workers: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Return `u8[N, H, W, 3]` in the order of `sources`, and (index, reason) of each that cannot be decoded.

    The pixels of a bad image are zeros. `workers` threads, by default one for each core.
    """
    images = np.zeros((len(sources), spec.height_px, spec.width_px, 3), np.uint8)

    def decode_at(index: int) -> str | None:
        try:
            images[index] = decode_plain(sources[index], spec, max_pixels)
        except DataError as error:
            return str(error)
        return None

    return images, _for_each(decode_at, len(sources), workers)


def scan_images(
    sources: Sequence[ImageInput], *, workers: int | None = None, max_pixels: int = MAX_PIXELS
) -> list[tuple[int, str]]:
    """Return (index, reason) of each source that is no whole image: every pixel is decoded, nothing is kept."""

    def scan_at(index: int) -> str | None:
        source = sources[index]
        try:
            _checked(source) if isinstance(source, np.ndarray) else _load(source, max_pixels, None)
        except DataError as error:
            return str(error)
        return None

    return _for_each(scan_at, len(sources), workers)


def probe_image(source: ImageInput, *, name: str = "", max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Return what the header says, without decoding pixels; DataError as `decode_image`, which may call it `name`."""
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
            return ImageInfo("array", image.mode, *image.size)
        form, image = _open(source, max_pixels)
    except DataError as error:
        raise DataError(f"{name or _name(source)}: {error}") from error
    width_px, height_px = image.size[::-1] if _orientation(image) >= 5 else image.size
    return ImageInfo(form, image.mode, width_px, height_px)


def shrink(image: np.ndarray, side_px: int) -> np.ndarray:
    """Return `image u8[H, W, 3]` averaged over k x k pixels, by the least k that makes its sides at most `side_px`."""
    factor = -(-max(image.shape[:2]) // side_px)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB; transparency, where there is any, is composited over white.

    1, L: grey. I, I;16*: 16-bit grey, divided by 257 and rounded (I is clipped to 0..65535 first). F: grey, 0..255,
    clipped and rounded, NaN is 0. P, PA: looked up. CMYK: (255 - C)(255 - K) / 255 and so on (a CMYK JPEG is inverted
    first, as Adobe writes them). LAB: D50 to sRGB by LittleCMS. HSV, YCbCr, RGBX: Pillow's conversion. 16 bits for each
    of several channels come as their high bytes.
    """
    transparency = image.info.get("transparency")
    match image.mode:
        case "I" | "I;16" | "I;16L" | "I;16B" | "I;16N" | "F":
            values = np.asarray(image)
            grey = Image.fromarray(_grey_to_u8(values)).convert("RGB")
            return grey if transparency is None else _over_white(grey, Image.fromarray(values != transparency))
        case "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
            return converted if converted is not None else image
        case "LA" | "PA" | "RGBA" | "La" | "RGBa":
            straight = image.convert("LA") if image.mode == "La" else image
            rgba = straight.convert("RGBA")
            return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))
        case "1" | "L" | "P" | "RGB" if transparency is not None:
            rgba = image.convert("RGBA")
            return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))
        case "RGB":
            return image
        case _:
            return image.convert("RGB")


def encode_png(image: np.ndarray) -> bytes:
    """Return `image u8[H, W, 3]` as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_plain(source: ImageInput, spec: ImageSpec, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return `decode_image` of the source; its DataError does not name the source."""
    size = (spec.height_px, spec.width_px) if _crop_share(spec) == 1.0 else None
    if isinstance(source, np.ndarray) and source.shape == size and source.dtype == np.uint8:
        return np.repeat(source[:, :, None], 3, axis=2)
    return np.asarray(_fit(_load(source, max_pixels, spec), spec))


def _load(source: ImageInput, max_pixels: int, spec: ImageSpec | None) -> Image.Image:
    """Return the upright RGB image; with `spec`, a large JPEG at a reduced size that still suffices for it."""
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    form, image = _open(source, max_pixels)
    orientation = _orientation(image)
    try:
        if spec is not None and form == "JPEG":
            lying = orientation >= 5
            target = (spec.height_px, spec.width_px) if lying else (spec.width_px, spec.height_px)
            image.draft(None, _least_size(image.size, target, spec.resize, _crop_share(spec)))
        image.load()
        rgb = to_rgb(image)
    except MemoryError as error:
        raise DataError(f"{form} of {image.width} x {image.height} pixels does not fit in memory") from error
    except DAMAGE as error:
        raise _damage(form, error) from error
    turn = _TURNS.get(orientation)
    return rgb if turn is None else rgb.transpose(turn)


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return the RGB image brought to the size of `spec`."""
    target = (spec.width_px, spec.height_px)
    share = _crop_share(spec)
    if image.size == target and share == 1.0:
        return image
    method = _FILTERS[spec.filter]
    (width, height), (to_width, to_height) = image.size, target
    match spec.resize:
        case "stretch":
            return image.resize(target, method)
        case "crop":
            scale = max(to_width / width, to_height / height) / share
            box_width, box_height = min(width, to_width / scale), min(height, to_height / scale)
            left, top = (width - box_width) / 2, (height - box_height) / 2
            return image.resize(
                target, method, (left, top, min(width, left + box_width), min(height, top + box_height))
            )
        case "pad":
            scale = min(to_width / width, to_height / height)
            inner = (min(to_width, max(1, round(width * scale))), min(to_height, max(1, round(height * scale))))
            canvas = Image.new("RGB", target)
            resized = image if inner == image.size else image.resize(inner, method)
            canvas.paste(resized, ((to_width - inner[0]) // 2, (to_height - inner[1]) // 2))
            return canvas
        case never:
            assert_never(never)


_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _crop_share(spec: ImageSpec) -> float:
    return 1.0 if isinstance(spec.crop_share, UnsetType) else spec.crop_share


def _least_size(size: tuple[int, int], target: tuple[int, int], resize: str, share: float = 1.0) -> tuple[int, int]:
    """Return the (width, height) that a JPEG must at least be decoded at."""
    ratios = (target[0] / size[0] / share, target[1] / size[1] / share)
    across, down = {"stretch": ratios, "crop": (max(ratios),) * 2, "pad": (min(ratios),) * 2}[resize]
    return math.ceil(SIZE_FACTOR * across * size[0]), math.ceil(SIZE_FACTOR * down * size[1])


class _Jpeg(JpegImageFile):
    """Pillow's JPEG reader without its look into EXIF for a print resolution, which warns about damaged EXIF data."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def _open(source: str | os.PathLike[str] | bytes, max_pixels: int) -> tuple[Format, Image.Image]:
    """Return the format, and the image with its header read and no pixel decoded."""
    data = source if isinstance(source, bytes) else read_image_file(source)
    form = identify(data)
    try:
        match form:
            case "JPEG":
                image = _Jpeg(io.BytesIO(data))
            case "PNG":
                image = _open_png(data)
            case "WebP":
                _limit(webp_size(data), max_pixels)
                image = WebPImageFile(io.BytesIO(data))
            case "BMP":
                image = BmpImageFile(io.BytesIO(data))
            case "GIF":
                _limit(gif_size(data), min(max_pixels, MAX_GIF_PIXELS))
                image = GifImageFile(io.BytesIO(data))
            case never:
                assert_never(never)
    except MemoryError as error:
        raise DataError(f"{form} does not fit in memory") from error
    except DAMAGE as error:
        raise _damage(form, error) from error
    _limit(image.size, max_pixels)
    return form, image


def _limit(size: tuple[int, int], max_pixels: int) -> None:
    """Raise DataError for an image without pixels or with more than `max_pixels`."""
    width, height = size
    if width <= 0 or height <= 0:
        raise DataError(f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise DataError(f"is {width} x {height} = {width * height} pixels, more than the {max_pixels} allowed")


def _damage(form: Format, error: Exception) -> DataError:
    """Return the reason in a few words; what Pillow said is chained to it."""
    cut = any(word in str(error).lower() for word in ("truncat", "unexpected end", "not enough", "requires a buffer"))
    return DataError(f"{form} is {'truncated' if cut else 'damaged'}")


def _open_png(data: bytes) -> Image.Image:
    """Return the PNG with what Pillow leaves undone: the transparent colour is brought to the scale of the pixels."""
    *size, depth = png_header(data)
    _limit((size[0], size[1]), size[0] * size[1])
    image = PngImageFile(io.BytesIO(verified_png(data)))
    transparency = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparency, int) and depth < 8:
        image.info["transparency"] = transparency * 255 // (2**depth - 1)
    if image.mode == "RGB" and isinstance(transparency, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8."""
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def _from_array(array: np.ndarray) -> Image.Image:
    """Return the pixels as an image; DataError as `_checked`."""
    layout = _checked(array)
    return Image.fromarray(np.ascontiguousarray(_grey_to_u8(layout) if layout.dtype == np.uint16 else layout))


def _checked(array: np.ndarray) -> np.ndarray:
    """Return `u8[H, W]`, `u8[H, W, 3|4]` or `u16[H, W]`; DataError for any other dtype or shape."""
    layout = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    deep = layout.dtype == np.uint16 and layout.ndim == 2
    plain = layout.dtype == np.uint8 and (layout.ndim == 2 or (layout.ndim == 3 and layout.shape[2] in (3, 4)))
    if not (deep or plain) or 0 in layout.shape:
        raise DataError(
            f"expected u8[H, W], u8[H, W, 1 or 3 or 4] or u16[H, W] with pixels, got {array.dtype}{list(array.shape)}"
        )
    return layout


def _grey_to_u8(values: np.ndarray) -> np.ndarray:
    """Return `u8[H, W]`: floats as they are (0..255), integers as 16-bit grey (0..65535)."""
    if values.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(values, nan=0.0), 0, 255)).astype(np.uint8)
    return ((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return the RGB image over white, opaque where `alpha` is 255 (or true)."""
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _for_each(work: Callable[[int], str | None], count: int, workers: int | None) -> list[tuple[int, str]]:
    """Run `work` on 0 .. count - 1 in threads; return (index, result) in order where the result is not None."""
    threads = workers or default_workers()
    size = max(
        1, min(64, -(-count // (4 * threads)))
    )  # in blocks: a task for each tiny image costs more than the image
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda block: [(index, work(index)) for index in block], blocks)
        return [(index, reason) for block in found for index, reason in block if reason is not None]


def default_workers() -> int:
    """Return the number of threads to decode in: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoder_versions() -> dict[str, str]:
    """Return what decides, with an ImageSpec, which pixels a file becomes: Pillow and the libraries inside it."""
    found = {"pillow": PIL.__version__}
    for codec in ("jpg", "libjpeg_turbo", "webp"):
        found[codec] = str(features.version(codec))
    return found


def _name(source: ImageInput) -> str:
    """Return what to call the source in a message."""
    if isinstance(source, np.ndarray):
        return "image array"
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
