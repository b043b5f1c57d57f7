"""No augment costs more than the network's own step: ResNet-18, batch 64, at 64 and 128 px.

Question: how many images/s does the compiled train step do without augmentation, with each augment alone, and with the
strong recipe of docs/VISION.md (crop, flip, TrivialAugment, erasing, mixup and cutmix)?
What is timed is `training.steps` as a run uses it, on rows that lie on the device; each augment beside it alone.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512), or the GPU that JAX finds. Versions: Python 3.13, jax 0.12. n = 5.

Compile time is apart. `share` is that of the whole step with the augment in it that the augment adds, from the time of
the augment alone; the strong recipe is also timed inside the step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from harness import Figure, save_results

from mmjax.backend import compiled, configure
from mmjax.config import Augmentation
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.data.prepare import prepare
from mmjax.parts import build_parts
from mmjax.recipe import resolve_prepared
from mmjax.training.setup import Setup, set_up
from mmjax.training.steps import empty_totals, make_train_chunk
from mmjax.transforms.build import build_augment

BATCH = 64
AUGMENTS: dict[str, dict[str, Any]] = {
    "horizontal_flip": {},
    "alternating flip": {"horizontal_flip": "alternating"},
    "shift": {"shift": 0.08},
    "rotation_range": {"rotation_range": 15},
    "color": {"color": 0.4},
    "random_resized_crop": {"random_resized_crop": (0.08, 1.0)},
    "trivial_augment": {"trivial_augment": True},
    "random_erasing": {"random_erasing": 0.25},
    "mixup and cutmix": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
}
STRONG: dict[str, Any] = {
    "random_resized_crop": (0.08, 1.0),
    "trivial_augment": True,
    "random_erasing": 0.1,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
}


class Measured(NamedTuple):
    """Seconds of each repeat, and of the first call, which compiles."""

    seconds: tuple[float, ...]
    compile_s: float


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides in pixels [64 128]")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls [5]")
    parser.add_argument("--model", default="resnet18", help="the network [resnet18]")
    arguments = parser.parse_args()
    backend = configure()
    figures: list[Figure] = []
    compile_s: dict[str, float] = {}
    for side in arguments.sizes:
        found, compiling = _of_size(side, arguments.model, arguments.repeats)
        figures, compile_s = figures + found, compile_s | compiling
        print(f"{side} px: done", flush=True)
    save_results("augmentation", figures, device=backend.device, batch=BATCH, compile_s=compile_s)


def _of_size(side: int, model: str, repeats: int) -> tuple[list[Figure], dict[str, float]]:
    """Return the figures at one size, and seconds of compiling."""
    plain, strong = (_step_time(side, model, augmentation, repeats) for augmentation in (None, STRONG))
    named = f"{model}, {side} px"
    compile_s = {f"{named}, step": plain.compile_s, f"{named}, step with the strong recipe": strong.compile_s}
    figures = [
        Figure(f"{named}: training without augmentation", "images/s", tuple(BATCH / s for s in plain.seconds)),
        Figure(f"{named}: with the strong recipe", "images/s", tuple(BATCH / s for s in strong.seconds)),
    ]
    step = statistics.median(plain.seconds)
    for name, setting in AUGMENTS.items():
        alone = _augment_time(side, setting, repeats)
        compile_s[f"{side} px, {name}"] = alone.compile_s
        shares = tuple(s / (s + step) for s in alone.seconds)
        figures.append(Figure(f"  {name}, share of the step", "", shares, "<=", 0.5))
    return figures, compile_s


def _setup(side: int, model: str, augmentation: dict[str, Any] | None) -> Setup:
    """Return the Setup of a run on random pictures of this side."""
    chosen = {"horizontal_flip": augmentation is not None, "shift": 0.0} | (augmentation or {})
    chosen = {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}
    with tempfile.TemporaryDirectory() as made:
        for label in ("a", "b"):
            (Path(made) / label).mkdir()
            for index in range(80):
                pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3)).astype(np.uint8)
                (Path(made) / label / f"{index}.png").write_bytes(encode_png(pixels))
        image = {"path": made, "image_size": [side, side], "augmentation": chosen}
        content = {
            "name": "augmentation",
            "data": {"image": image},
            "model": {"name": model},
            "training": {"batch_size": BATCH, "epochs": 2},
            "audit": {"duplicates": "ignore", "overlap": "ignore", "conflicts": "ignore"},
        }
        config = config_from_dict(content, "benchmark")
        prepared = prepare(config)
    config, _ = resolve_prepared(config, prepared)
    return set_up(config, prepared, build_parts(config, prepared.schema))


def _step_time(side: int, model: str, augmentation: dict[str, Any] | None, repeats: int) -> Measured:
    """Return how long a train step takes."""
    setup = _setup(side, model, augmentation)
    step = compiled(make_train_chunk(setup.task.learner, seed=0, loop=setup.plan.loop), precision=setup.plan.precision)
    data = jax.device_put({name: values[setup.task.rows[:BATCH]] for name, values in setup.task.data.items()})
    rows = jax.device_put(np.tile(np.arange(BATCH, dtype=np.int32), (20, 1)))
    count = 20 if setup.plan.loop else 1
    arguments = (setup.state, empty_totals(), data, *setup.fitted, rows, 0)
    return _timed(lambda: step(*arguments, count), repeats, calls=count)


def _augment_time(side: int, setting: dict[str, Any], repeats: int) -> Measured:
    """Return how long the augment takes alone, many in one program where training runs many."""
    only = {"horizontal_flip": setting in ({}, AUGMENTS["alternating flip"]), "shift": 0.0} | setting
    augment = build_augment(Augmentation(**only))
    assert augment is not None
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 1, side, side, 3)).astype(np.uint8)
    at = np.arange(BATCH, dtype=np.int32)
    batch = jax.device_put({"image": pixels, "label": at % 2, "row": at, "epoch": at * 0})
    count = 20 if jax.default_backend() != "cpu" else 1

    def many(key: jax.Array, batch: Any) -> Any:
        def once(index: jax.Array, total: jax.Array) -> jax.Array:
            # An image that hangs on the sum before, so that no round is taken out of the loop.
            held = batch | {"image": batch["image"].at[0, 0, 0, 0, 0].set((total % 7).astype(np.uint8))}
            return total + augment(jax.random.fold_in(key, index), held)["image"].sum()

        if count == 1:
            return augment(key, batch)
        return jax.lax.fori_loop(0, count, once, jax.numpy.zeros(()))

    program = compiled(many)
    return _timed(lambda: program(jax.random.key(1), batch), repeats, calls=count)


def _timed(call: Callable[[], Any], repeats: int, *, calls: int) -> Measured:
    """Return the seconds of one of so many calls in each repeat."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - started
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append((time.perf_counter() - started) / calls)
    return Measured(tuple(seconds), first)


if __name__ == "__main__":
    main()
