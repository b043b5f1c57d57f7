"""Claim: on CPU `mmjax.models.convolution` trains depthwise and strided 1x1 layers several times faster than plain
`jax.lax`, and is no slower on dense ones.

Both forms run in turn, forward and both gradients as one compiled call, n = 7 each; compile time is apart. Medians and
quartiles in ms go to stdout and, as JSON, to the file named on the command line (default: convolution.json).
First measured on two cores of a Xeon with AVX-512, jaxlib 0.12, f32, other work on the machine.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmjax.models.convolution import convolution

RUNS = 7


class Layer(NamedTuple):
    """One layer to time."""

    batch: int
    size_px: int
    inputs: int
    outputs: int
    kernel_px: int
    stride: int
    groups: int


LAYERS = {
    "dense 3x3": Layer(128, 28, 16, 16, 3, 1, 1),
    "dense 3x3 stride 2": Layer(128, 28, 16, 32, 3, 2, 1),
    "shortcut 1x1 stride 2": Layer(128, 28, 32, 64, 1, 2, 1),
    "depthwise 3x3": Layer(32, 32, 96, 96, 3, 1, 96),
    "depthwise 3x3 stride 2": Layer(32, 32, 96, 96, 3, 2, 96),
    "depthwise 5x5": Layer(32, 16, 144, 144, 5, 1, 144),
}


def plain(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int) -> jax.Array:
    layout, pads = ("NHWC", "HWIO", "NHWC"), ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
    )


def compiled(form: Callable[..., jax.Array], layer: Layer, x: jax.Array, kernel: jax.Array) -> tuple[Any, float]:
    def train(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        y, back = jax.vjp(
            lambda x, k: form(x, k, stride=layer.stride, padding=layer.kernel_px // 2, groups=layer.groups), x, kernel
        )
        return y, back(y)

    start = time.perf_counter()
    program = jax.jit(train).lower(x, kernel).compile()
    return program, time.perf_counter() - start


def timed_ms(program: Any, *arguments: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return (time.perf_counter() - start) * 1e3


def measure(layer: Layer) -> dict[str, Any]:
    x = jax.random.normal(jax.random.key(0), (layer.batch, layer.size_px, layer.size_px, layer.inputs))
    size = (layer.kernel_px, layer.kernel_px, layer.inputs // layer.groups, layer.outputs)
    kernel = jax.random.normal(jax.random.key(1), size)
    programs = {form.__name__: compiled(form, layer, x, kernel) for form in (plain, convolution)}
    for program, _ in programs.values():
        timed_ms(program, x, kernel)
    times = {name: [] for name in programs}
    for _ in range(RUNS):
        for name, (program, _) in programs.items():
            times[name].append(timed_ms(program, x, kernel))
    return {
        name: {"quartiles_ms": statistics.quantiles(times[name], n=4), "compile_s": programs[name][1]} for name in times
    }


def main() -> None:
    results = {name: measure(layer) for name, layer in LAYERS.items()}
    for name, result in results.items():
        old, new = (result[form]["quartiles_ms"][1] for form in ("plain", "convolution"))
        print(f"{name:24} lax {old:8.2f} ms   ours {new:8.2f} ms   {old / new:5.1f}x")
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "convolution.json")
    machine = {"jax": jax.__version__, "backend": jax.default_backend(), "cores": os.cpu_count(), "runs": RUNS}
    target.write_text(json.dumps({"machine": machine, "layers": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
