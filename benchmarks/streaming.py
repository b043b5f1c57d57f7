"""Streamed images reach the step at >= 20,000 images/s at 64 px, whatever the data set's size, in bounded memory.

Question: how many images a second does `mmjax.data.stream.windows` deliver as NumPy arrays ready for `device_put`, in
the random order of training, from a cache of 60,000 images of 64 x 64 (0.69 GiB)? n = 7 epochs of each kind, in turn.
Hardware: two cores (AMD EPYC, 2.6 GHz). Versions: Python 3.13, grain 0.2.18, NumPy 2.

Kinds: `warm` (the file is in the system's page cache), `cold` (its pages were given back before each epoch), `to the
device` (warm, each window put on the device and waited for), and as a peer the same windows gathered by plain NumPy
from an array in memory. Rows are u8, random. The clock runs over a whole epoch, the start of the threads included.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from harness import Figure, save_results

from mmjax.config import Cache
from mmjax.data.cache import Cached, CacheWriter, open_or_build
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.stream import window_steps, windows
from mmjax.schema import Batch

SIZE_PX = 64
BATCH = 128
GOAL = 20_000.0


def make_cache(folder: Path, images: int) -> Cached:
    """Return a cache of random images with labels."""

    def build(writer: CacheWriter) -> dict[str, int]:
        rng = np.random.default_rng(0)
        for first in range(0, images, 1000):
            count = min(1000, images - first)
            pixels = rng.integers(0, 256, (count, 1, SIZE_PX, SIZE_PX, 3), np.uint8)
            writer.append({"image": pixels, "label": rng.integers(0, 10, count, np.int32)})
        return {}

    return open_or_build(Cache(path=str(folder)), {"images": images}, build)


def forget(cached: Cached) -> None:
    """Let the system give back the pages of the cache."""
    for name in cached.batch:
        descriptor = os.open(cached.path / f"{name}.bin", os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def epoch(stream: Iterator[Batch], use: Callable[[Batch], object]) -> tuple[float, float]:
    """Return (seconds, CPU seconds) of reading all windows."""
    began, cpu = time.perf_counter(), time.process_time()
    for window in stream:
        use(window)
    return time.perf_counter() - began, time.process_time() - cpu


def plain_windows(batch: Batch, order: np.ndarray, steps: int) -> Iterator[Batch]:
    """Yield what `windows` does, gathered from memory when asked for."""
    for first in range(0, len(order), steps):
        yield take(batch, np.resize(order[first : first + steps], steps * order.shape[1]))


def mapped_mb() -> float:
    """Return the pages of files that this process holds, in units of 1e6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssFile"))


def measure(cached: Cached, epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Return (images a second, images a second of CPU time) of each epoch, by kind."""
    batch, images = cached.batch, len(cached.batch["label"])
    memory = {name: np.array(values) for name, values in batch.items()}
    rows, steps = np.arange(images), window_steps(batch, BATCH)
    found: dict[str, list[tuple[float, float]]] = {"warm": [], "cold": [], "to the device": [], "NumPy, in memory": []}
    for number in range(epochs + 1):
        for kind, seen in found.items():
            order = epoch_batches(0, number, images, BATCH)
            if kind == "cold":
                forget(cached)
            use = (lambda window: jax.block_until_ready(jax.device_put(window))) if kind == "to the device" else len
            if kind == "NumPy, in memory":
                times = epoch(plain_windows(memory, order, steps), use)
            else:
                with contextlib.closing(windows(batch, rows, order, steps=steps, start=0)) as stream:
                    times = epoch(stream, use)
            if number:  # the first of each kind imports and compiles
                seen.append((order.size / times[0], order.size / times[1]))
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="in the cache [60000]")
    parser.add_argument("--epochs", type=int, default=7, help="of each kind [7]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cached = make_cache(Path(folder), arguments.images)
        before = mapped_mb()
        found = measure(cached, arguments.epochs)
        kept = mapped_mb() - before
    figures = []
    for kind, rates in found.items():
        wall, cpu = zip(*rates, strict=True)
        bound = ("", float("nan")) if kind == "NumPy, in memory" else (">=", GOAL)
        figures += [
            Figure(f"64 px, {kind}", "images/s", wall, *bound),
            Figure(f"  by CPU time, {kind}", "images/s", cpu),
        ]
    figures.append(Figure("pages of the cache held after all epochs", "MB", (kept,), "<=", 100.0))
    save_results("streaming", figures, images=arguments.images, cache_bytes=cached.bytes, batch=BATCH)


if __name__ == "__main__":
    main()
