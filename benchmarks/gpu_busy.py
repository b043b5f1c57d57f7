"""Images of 64 px from the cache of decoded pixels keep a GPU >= 95 % busy.

Question: for how much of an epoch does the GPU compute, when `mmjax.fit` trains ResNet-18 on photographs that were
decoded before, once with all pixels on the device (`data.loading: resident`) and once read from disk as they are needed
(`streamed`)? The epoch is the fourth of five, the look at the validation rows after it inside: the first compiles, and
beside the second and third the first checkpoint is written; there is one a minute later on.
Busy: the union of the times of all kernels, without copies, that the profiler saw, over the time from the end of the
epoch before to its own end. 32,768 made-up JPEG files, bfloat16, the batch size that the recipe chooses; n = 1 run of
each. Needs a GPU.

`--attempts` asks of resident images what else could keep it busier: each step launched by the host, which runs ahead of
the device, in place of one program whose loop looks at its own end after each step; 512 images a step; and both.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, run_json, save_results

PX, CLASSES = 64, 16
TRACED = 4
"""The epoch that is looked at."""
ATTEMPTS: dict[str, dict[str, Any]] = {
    "steps launched by the host": {"loop": False},
    "512 images a step": {"batch_size": 512},
    "both": {"loop": False, "batch_size": 512},
}


def write_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files of PX x PX, a folder for each class, whose images share a colour."""
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (CLASSES, 3))

    def write(index: int) -> None:
        label, rng = index % CLASSES, np.random.default_rng(index)
        coarse = np.clip(colours[label] + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(coarse).resize((PX, PX))
        image.save(folder / f"class{label:02d}" / f"{index}.jpg", quality=90)

    for label in range(CLASSES):
        (folder / f"class{label:02d}").mkdir()
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


def fit_here(request: dict[str, Any]) -> dict[str, Any]:
    """Return how busy the device was in one epoch of one run, and what the run says of itself."""
    import jax

    from mmjax.backend import platform
    from mmjax.config_load import config_from_dict
    from mmjax.train import fit
    from mmjax.training import setup
    from mmjax.training.event_types import EpochEnded, Event

    if platform() != "gpu":
        raise SystemExit(f"expected a GPU, got {platform()}; install JAX for yours")
    trace, ends = Path(request["folder"]) / "trace", {}
    kernels_alone = jax.profiler.ProfileOptions()
    kernels_alone.host_tracer_level = kernels_alone.python_tracer_level = 0
    started = time.perf_counter()

    def watch(event: Event) -> None:
        print(f"{time.perf_counter() - started:.1f} s: {type(event).__name__}", file=sys.stderr, flush=True)
        if not isinstance(event, EpochEnded):
            return
        if event.epoch == TRACED:
            ends[event.epoch] = time.perf_counter()
            jax.profiler.stop_trace()
        if event.epoch == TRACED - 1:
            jax.profiler.start_trace(trace, profiler_options=kernels_alone)
            ends[event.epoch] = time.perf_counter()

    if "loop" in request:  # no key of the config: the backend decides it
        make_plan = setup.make_plan
        setup.make_plan = lambda config: make_plan(config)._replace(loop=request["loop"])
    batch_size = {"batch_size": request["batch_size"]} if "batch_size" in request else {}
    image = {"path": request["images"], "image_size": [PX, PX]}
    document = {
        "name": "busy",
        "model": {"name": "resnet18", "type": "vision"},
        "data": {"loading": request["loading"], "image": image, "cache": {"path": request["cache"]}},
        "evaluation": {"baselines": "none"},
        "precision": "bfloat16",
        "training": {"epochs": TRACED + 1} | batch_size,
    }
    run_dir = Path(request["folder"]) / "run"
    fitted = fit(
        config_from_dict(document, "benchmark"), run_dir=run_dir, registry=None, resume="never", callbacks=(watch,)
    )
    return {
        "device": jax.devices()[0].device_kind,
        "busy_s": busy_seconds(trace),
        "epoch_s": ends[TRACED] - ends[TRACED - 1],
        "samples_per_second": fitted.report["training"]["samples_per_second"],
    }


def busy_seconds(trace: Path) -> float:
    """Return the seconds in which at least one kernel was under way on the GPU."""
    from jax.profiler import ProfileData

    (path,) = trace.rglob("*.xplane.pb")
    spans = sorted(
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in ProfileData.from_file(str(path)).planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
        if not event.name.startswith("Mem")  # copies
    )
    busy, until = 0.0, 0.0
    for start, stop in spans:
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return busy / 1e9


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32768, help="files [32768]")
    parser.add_argument("--attempts", action="store_true", help="what else could keep it busier")
    parser.add_argument("--fit-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit_here:
        print(json.dumps(fit_here(json.load(sys.stdin))))
        return
    figures = []
    with tempfile.TemporaryDirectory() as made:
        images = Path(made) / "images"
        images.mkdir()
        write_images(images, arguments.images)
        asked: dict[str, dict[str, Any]] = {loading: {"loading": loading} for loading in ("resident", "streamed")}
        if arguments.attempts:
            asked |= {name: {"loading": "resident", **changes} for name, changes in ATTEMPTS.items()}
        for name, changes in asked.items():
            folder = Path(made) / name
            folder.mkdir()
            request = {"images": str(images), "cache": f"{made}/cache", "folder": str(folder), **changes}
            command = [sys.executable, __file__, "--fit-here"]
            found = run_json(command, env={}, timeout_s=600, request=request).document
            share = found["busy_s"] / found["epoch_s"]
            figures += [
                Figure(f"ResNet-18, {PX} px, {name}: {found['device']} busy", "of an epoch", (share,), ">=", 0.95),
                Figure("  an epoch", "s", (found["epoch_s"],)),
                Figure("  in training steps", "images/s", (found["samples_per_second"],)),
            ]
    save_results("gpu_busy", figures)


if __name__ == "__main__":
    main()
