"""Write the sample images: 30 RGB PNGs of 64x64, ten in each of the classes red, green and blue.

Run as `python data/make_sample.py`. Each image is a disc, a square or a triangle of its class's colour on a noisy grey
ground. The files are the same bytes on every machine: the noise is Python's own `random.Random(seed)` and the PNGs are
written without compression (a compressor's bytes differ from version to version). A file that is already right is left
alone. `sample/iris.csv` lies in the repository; that it is whole is checked.
"""

import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

SAMPLE = Path(__file__).resolve().parent / "sample"
SIZE_PX = 64
IMAGES_PER_CLASS = 10
COLORS = {"red": (200, 60, 60), "green": (60, 180, 70), "blue": (60, 80, 200)}
IRIS_HEADER = "sepal_length,sepal_width,petal_length,petal_width,species"
IRIS_ROWS = 150


def encode_plain_png(image: np.ndarray) -> bytes:
    """Return `image u8[H, W, 3]` (at most 65535 bytes of pixels) as a PNG whose pixels are stored, not compressed."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", stored + struct.pack(">I", zlib.adler32(rows))),
        (b"IEND", b""),
    )
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def shape_mask(shape: str, center: tuple[int, int], radius_px: int) -> np.ndarray:
    """Return `bool[64, 64]`, true inside the shape."""
    down, across = np.mgrid[:SIZE_PX, :SIZE_PX]
    down, across = down - center[0], across - center[1]
    if shape == "disc":
        return down**2 + across**2 <= radius_px**2
    if shape == "square":
        return np.maximum(abs(down), abs(across)) <= radius_px
    return (down <= radius_px) & (down >= 2 * abs(across) - radius_px)


def draw(color: tuple[int, int, int], seed: str) -> np.ndarray:
    """Return `u8[64, 64, 3]`: one shape of this colour on a noisy ground, decided by `seed`."""
    source = random.Random(seed)
    shape = source.choice(("disc", "square", "triangle"))
    radius_px = source.randint(12, 22)
    center = (source.randint(24, 40), source.randint(24, 40))
    ground = source.randint(70, 150)
    noise = np.frombuffer(source.randbytes(SIZE_PX * SIZE_PX * 3), np.uint8).reshape(SIZE_PX, SIZE_PX, 3) % 64
    mask = shape_mask(shape, center, radius_px)[:, :, None]
    image = np.where(mask, np.array(color), ground) + noise.astype(int) - 32
    return image.clip(0, 255).astype(np.uint8)


def write_images(folder: Path) -> int:
    """Write every sample image under `folder`; return how many files were new or changed."""
    written = 0
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(IMAGES_PER_CLASS):
            path = folder / name / f"{index:02d}.png"
            data = encode_plain_png(draw(color, f"{name}-{index}"))
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)
                written += 1
    return written


def check_iris(path: Path) -> str | None:
    """Return what is wrong with the iris table at `path`, or None."""
    if not path.is_file():
        return f"{path}: not there; restore it with git"
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[:1] != [IRIS_HEADER] or len(lines) != IRIS_ROWS + 1:
        return f"{path}: expected the header {IRIS_HEADER} and {IRIS_ROWS} rows; restore it with git"
    return None


def main() -> int:
    """Write the images, check the table, say what was done; return the exit code."""
    wrong = check_iris(SAMPLE / "iris.csv")
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 3
    written = write_images(SAMPLE / "images")
    total = IMAGES_PER_CLASS * len(COLORS)
    print(f"sample data ready: iris.csv ({IRIS_ROWS} rows), images ({total} files, {written} written)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
