"""Image files that are odd or hostile."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.live import png

BASE = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of_mode(mode: str, form: str = "PNG") -> bytes:
    """A file of a mode that is not RGB."""
    if mode == "I;16":
        return saved(Image.fromarray(BASE[:, :, 0].astype(np.uint16) * 257), form)
    return saved(Image.fromarray(BASE).convert(mode), form)


def palette_with_alpha() -> bytes:
    return saved(Image.fromarray(BASE).convert("P"), "PNG", transparency=3)


def oriented(orientation: int) -> bytes:
    """A JPEG that says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(BASE), "JPEG", exif=exif)


def animated(form: str) -> bytes:
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (30, 120, 250)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], duration=50, loop=0)


def flipped(seed: int) -> bytes:
    """A file with some bits of its data turned over."""
    data = bytearray(saved(Image.fromarray(BASE), ("PNG", "JPEG", "WEBP", "BMP", "GIF")[seed % 5]))
    rng = np.random.default_rng(seed)
    for place in rng.integers(16, len(data), 8):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def bomb() -> bytes:
    """13,300 x 13,300 pixels of one bit in 21 KB."""
    return saved(Image.new("1", (13_300, 13_300)), "PNG")


def sized(width: int, height: int) -> bytes:
    """A PNG whose header, with a right checksum, tells another size."""
    data = bytearray(png(1))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    data = png(1)
    return data[:33] + chunk(kind, content) + data[33:]


def text_bomb() -> bytes:
    """A compressed text of 50 MB."""
    return with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))


def profile_bomb() -> bytes:
    """A compressed colour profile of 50 MB."""
    return with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"\0" * 50_000_000))


def form(*parts: tuple[str, str | None, bytes], line: str = "line") -> bytes:
    """A form of (name, file name or None, content)."""
    made = []
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{line}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        made.append(head.encode() + content + b"\r\n")
    return b"".join(made) + f"--{line}--\r\n".encode()


ODD = {
    "40-CMYK": of_mode("CMYK", "JPEG"),
    "40-LA": of_mode("LA"),
    "40-palette": palette_with_alpha(),
    "40-16-bit": of_mode("I;16"),
    "40-1-bit": of_mode("1"),
    **{f"41-orientation-{i}": oriented(i) for i in (1, 3, 6, 8)},
    **{f"42-animated-{kind}": animated(kind) for kind in ("GIF", "PNG", "WEBP")},
    "43-with-a-zip-behind": png(30) + b"PK\3\4" + b"\0" * 50,
    "47-giant-profile": profile_bomb(),
    "47-giant-text": text_bomb(),
    "47-giant-exif": with_chunk(b"eXIf", b"MM\0*" + b"\xff" * 2_000_000),
}
"""Unusual images that are answered, by their number in the list of bad requests."""
