"""The first epoch's decoding of a folder of images takes <= 1.2x the time of bare Pillow on all cores.

Question: how long does `mmjax.data.pixels.decode_resident` (read, verify, decode, orient, resize to 64 px, key of the
content, perceptual hash) take beside a plain ThreadPool of `Image.open(path).convert("RGB").resize(...)` with the same
filter, as many threads and tasks of the same size? n = 5 of each, in turn, files in the page cache.
Hardware: two cores (AMD EPYC, 2.6 GHz). Versions: Python 3.13, Pillow 13.

Folders: 4,000 JPEGs of 96 px (little to decode: the worst case), 1,500 of 400 px, 300 of 1,600 px, 2,000 PNGs of
64 px. mmjax decodes a JPEG at 1/2, 1/4 or 1/8 by its DCT where that leaves at least twice the size needed (`draft`),
and so does a second peer. The price of `draft` is told too: the mean absolute difference of the pixels, in grey levels,
to those of bare Pillow without it.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Figure, save_results
from PIL import Image

from mmjax.data.decode import default_workers
from mmjax.data.pixels import TASK, decode_resident
from mmjax.schema import ImageSpec

SIZE_PX = 64
SPEC = ImageSpec(height_px=SIZE_PX, width_px=SIZE_PX, resize="stretch")
GOAL = 1.2


class Folder(NamedTuple):
    """What kind of files, and how many."""

    name: str
    format: str
    side_px: int
    files: int


FOLDERS = (
    Folder("JPEG 96 px", "JPEG", 96, 4000),
    Folder("JPEG 400 px", "JPEG", 400, 1500),
    Folder("JPEG 1600 px", "JPEG", 1600, 300),
    Folder("PNG 64 px", "PNG", 64, 2000),
)


def make_files(home: Path, folder: Folder) -> list[str]:
    """Return the paths of new files: 32 pictures of blurred noise, each written many times with bytes of its own."""
    rng, files = np.random.default_rng(0), []
    for _ in range(32):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((folder.side_px, folder.side_px), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 6, (folder.side_px, folder.side_px, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, folder.format, **({"quality": 90} if folder.format == "JPEG" else {}))
        files.append(buffer.getvalue())
    paths = [home / f"{number}.bin" for number in range(folder.files)]
    for number, path in enumerate(paths):
        path.write_bytes(files[number % 32] + number.to_bytes(4, "big"))  # behind the end of the image: no reader minds
    return [str(path) for path in paths]


def bare(paths: list[str], *, draft: bool) -> np.ndarray:
    """Return u8[N, 64, 64, 3] as a plain loop in threads gives them."""
    images = np.zeros((len(paths), SIZE_PX, SIZE_PX, 3), np.uint8)

    def load(index: int) -> None:
        image = Image.open(paths[index])
        if draft:
            image.draft("RGB", (2 * SIZE_PX, 2 * SIZE_PX))
        images[index] = np.asarray(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))

    with ThreadPool(default_workers()) as pool:
        pool.map(load, range(len(paths)), chunksize=TASK)
    return images


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return (seconds, CPU seconds of all threads)."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def measure(folder: Folder, repeats: int) -> list[Figure]:
    """Return the figures of one folder."""
    with tempfile.TemporaryDirectory() as home:
        paths = make_files(Path(home), folder)
        kinds: dict[str, Callable[[], object]] = {
            "bare Pillow": lambda: bare(paths, draft=False),
            "bare Pillow with draft": lambda: bare(paths, draft=True),
            "mmjax": lambda: decode_resident(SPEC, paths),
        }
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for number in range(repeats + 1):
            for kind, work in kinds.items():
                seconds = timed(work)
                if number:
                    times[kind].append(seconds)
        ours, full = decode_resident(SPEC, paths[:32]).images[:, 0], bare(paths[:32], draft=False)
    figures = [
        Figure(f"{folder.name}, {kind}", "images/s", tuple(folder.files / seconds for seconds, _ in times[kind]))
        for kind in kinds
    ]
    for kind in ("bare Pillow", "bare Pillow with draft"):
        pairs = list(zip(times["mmjax"], times[kind], strict=True))
        wall, cpu = (tuple(ours[i] / theirs[i] for ours, theirs in pairs) for i in (0, 1))
        name = f"{folder.name}, mmjax / {kind}"
        figures.append(Figure(name, "x", wall, "<=", GOAL) if kind == "bare Pillow" else Figure(name, "x", wall))
        figures.append(Figure(f"  by CPU time, mmjax / {kind}", "x", cpu))
    difference = float(np.abs(ours.astype(float) - full).mean())
    return [*figures, Figure("  mean difference of pixels to bare Pillow", "of 255", (difference,))]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each kind [5]")
    repeats = parser.parse_args().repeats
    figures = [figure for folder in FOLDERS for figure in measure(folder, repeats)]
    save_results("decoding", figures, threads=default_workers(), size_px=SIZE_PX)


if __name__ == "__main__":
    main()
