"""A folder of images starts training in memory that does not grow with the folder, names and answers aside.

Question: what is the largest memory of a process that prepares 5,000 and then 50,000 small JPEGs (64 px, streamed:
listed, decoded into an empty cache, split, audited), in all and without pages of files? And in a second process, which
finds the cache? n = 3 of each. What the imports of mmjax take, JAX included, is taken off.
Hardware: two cores (AMD EPYC, 2.6 GHz). Versions: Python 3.13, Pillow 13.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from harness import Figure, Finished, run_json, save_results
from PIL import Image

SIZE_PX = 64
COUNTS = (5_000, 50_000)


def make_files(home: Path, count: int) -> None:
    """Write `count` JPEGs, each another picture of blurred noise, to ten class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = home / f"class{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


def memory_mb(name: str) -> float:
    """Return a line of /proc/self/status, in units of 1e6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def child(images: Path, cache: Path) -> None:
    """Prepare the folder in this process, and print what it took as JSON."""
    from mmjax.config_load import config_from_dict
    from mmjax.data import prepare_images  # noqa: F401  its imports are not the question
    from mmjax.data.prepare import prepare

    data = {"image": {"path": str(images)}, "loading": "streamed", "cache": {"path": str(cache)}}
    config = config_from_dict({"name": "memory", "data": data}, "benchmark")
    before = {name: memory_mb(name) for name in ("VmRSS", "RssAnon")}
    anonymous, done = [before["RssAnon"]], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            anonymous.append(memory_mb("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    began = time.perf_counter()
    prepared = prepare(config)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    found = {
        "seconds": seconds,
        "images": len(prepared.names),
        "all": memory_mb("VmHWM") - before["VmRSS"],
        "anonymous": max(anonymous) - before["RssAnon"],
    }
    print(json.dumps(found))


def measure(count: int, repeats: int) -> dict[str, list[Finished]]:
    """Return the processes that make the cache, and those that find it."""
    found: dict[str, list[Finished]] = {"cache made": [], "cache found": []}
    with tempfile.TemporaryDirectory() as home:
        make_files(Path(home) / "images", count)
        for number in range(repeats):
            for runs in found.values():
                command = [sys.executable, __file__, "--child", Path(home) / "images", Path(home) / f"cache{number}"]
                runs.append(run_json(command, env={}, timeout_s=300))
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each kind [3]")
    parser.add_argument("--child", nargs=2, type=Path, metavar=("IMAGES", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    found = {count: measure(count, arguments.repeats) for count in COUNTS}
    figures = []
    for kind in ("cache made", "cache found"):
        for what in ("anonymous", "all"):
            small, large = ([run.document[what] for run in found[count][kind]] for count in COUNTS)
            figures += [
                Figure(f"{count:,} images, {kind}, {what}", "MB", tuple(values))
                for count, values in zip(COUNTS, (small, large), strict=True)
            ]
            grown = tuple((b - a) * 1e6 / (COUNTS[1] - COUNTS[0]) for a, b in zip(small, large, strict=True))
            bound = ("<=", SIZE_PX**2 * 3 / 10) if what == "anonymous" else ("", float("nan"))
            figures.append(Figure(f"  for each image more ({SIZE_PX**2 * 3:,} of pixels)", "bytes", grown, *bound))
        seconds = tuple(run.document["seconds"] for run in found[COUNTS[1]][kind])
        figures.append(Figure(f"{COUNTS[1]:,} images, {kind}", "s", seconds))
    save_results("image_memory", figures)


if __name__ == "__main__":
    main()
