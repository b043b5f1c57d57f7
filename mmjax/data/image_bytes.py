"""What the bytes of an image file say before anything decodes them: format, canvas size, orientation, checksums.

Everything here is a bounded walk over the bytes, without Pillow. It lets `decode` refuse a file by name, check its size
before memory is taken, and keep from Pillow the parts that it reports about through Python warnings.
"""

import os
import stat
import struct
import zlib
from typing import Literal

from mmjax.errors import DataError

Format = Literal["JPEG", "PNG", "WebP", "BMP", "GIF"]

ALLOWED_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)

OTHER_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftyp", "a video"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"P4\n", "NetPBM"),
    (0, b"P5\n", "NetPBM"),
    (0, b"P6\n", "NetPBM"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip"),
)
OTHER_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or other XML"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
)
"""How files begin that are text, in lower case, after a byte order mark and blanks."""

PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"))


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file; of a file of another format only its first 64. DataError when unreadable.

    Plain system calls: for a small image `open` would take twice as long as reading it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer must not block
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # the last where a name holds a NUL
        raise DataError("no such file") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DataError("is a folder, not an image" if stat.S_ISDIR(found.st_mode) else "is no regular file")
        parts = [os.read(descriptor, 64)]
        identify(parts[0])
        while part := os.read(descriptor, max(found.st_size, 64)):
            parts.append(part)
        return b"".join(parts)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def identify(data: bytes) -> Format:
    """Return the format that the first 64 bytes tell; DataError naming what it is instead.

    >>> identify(b"GIF89a...")
    'GIF'
    """
    if not data:
        raise DataError("is empty")
    for magic, name in ALLOWED_MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    text = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    others = [name for offset, magic, name in OTHER_MAGIC if data.startswith(magic, offset)]
    others += [name for magic, name in OTHER_TEXT if text.startswith(magic)]
    raise DataError(f"expected JPEG, PNG, WebP, BMP or GIF, got {others[0] if others else 'no image'}")


def verified_png(data: bytes) -> bytes:
    """Return the PNG with only the chunks that tell its pixels and orientation, each with its checksum verified.

    Text, profiles and animation are left out: they can be bombs, and Pillow warns about some. DataError when a chunk is
    cut short, damaged, or must be understood and is not known.
    """
    kept, at, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise DataError("PNG is truncated")
        if kind in PNG_CHUNKS:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise DataError(f"PNG is damaged (the checksum of {kind.decode()} is wrong)")
            kept.append(data[at:end])
        elif kind[:1].isupper() or not kind.isalpha():
            raise DataError("PNG is damaged (it holds an unknown critical chunk)")
        at = end
    return b"".join(kept)


def png_header(data: bytes) -> tuple[int, int, int]:
    """Return (width, height, bits per sample); DataError when the header is not where it must be."""
    if data[12:16] != b"IHDR" or len(data) < 25:
        raise DataError("PNG is damaged")
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    return width, height, depth


def webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the canvas; DataError when the header or the file is cut short or damaged."""
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise DataError("WebP is truncated")
    match data[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case _:
            raise DataError("WebP is damaged")


def gif_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the canvas with the first frame on it; DataError when it is cut short before."""
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at] != ord(","):
            if data[at] == ord("!"):
                at += 2
                while data[at]:
                    at += data[at] + 1
            at += 1
        left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    except (IndexError, struct.error) as error:
        raise DataError("GIF is truncated") from error
    return max(width, left + frame_width), max(height, top + frame_height)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 (upright) where it is absent or the data are damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for at in range(first + 2, first + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if (tag, kind) == (0x0112, 3):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
