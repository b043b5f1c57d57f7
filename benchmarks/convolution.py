"""On a CPU the form that `mmjax.models.convolution` chooses for each layer is within 10 % of the fastest it has.

Question: how long does every form of the layer take, forward and for both gradients, and is the chosen one the
fastest? Layers: those of ResNet-18 at 32 px (batch 64), 1x1 of ResNet-50 there, and EfficientNet-B0's depthwise ones at
64 px (batch 32); in f32 and, where this CPU is fast at it, bfloat16.
Each form is a program of its own, compiled as training compiles it, all before the first is timed; the forms of a layer
take turns, n = 9 (`--runs`) after a warm-up, and one that has taken half a second in all is timed no more. Of a 1x1
layer with stride, what is chosen comes after the pixels between were left out ("sliced").
Beside them the max pool of large images with its gradient, and XLA's own.
The table has medians in ms and GFLOP/s, a star at the chosen form and a note where it is more than 10 % slower than the
fastest; the figures are shares and ratios over the layers.
Hardware: two cores (AMD EPYC, AVX-512 with BF16). Versions: Python 3.13, jax 0.12.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import Figure, save_results

from mmjax.backend import compiled, configure, fast_bfloat16
from mmjax.models.convolution import chosen_forms
from mmjax.models.convolution_forms import FORWARD_FORMS, INPUT_FORMS, WEIGHT_FORMS, Geometry
from mmjax.models.pools import max_pool_3x3

ENOUGH_MS = 500.0
NEAR = 1.1
"""How much slower than the fastest the chosen form may be."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Call = Callable[..., jax.Array]


class Layer(NamedTuple):
    """One layer to time: square images and kernels."""

    batch: int
    size_px: int
    inputs: int
    outputs: int
    kernel_px: int
    stride: int = 1
    depthwise: bool = False

    @property
    def geometry(self) -> Geometry:
        """As the networks call it."""
        pad = self.kernel_px // 2
        return Geometry(self.stride, ((pad, pad), (pad, pad)), self.inputs if self.depthwise else 1)

    @property
    def name(self) -> str:
        """`3x3, 64 to 128 channels, 32 px, stride 2`."""
        kind = "depthwise " if self.depthwise else ""
        channels = f"{self.inputs}" if self.depthwise else f"{self.inputs} to {self.outputs}"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{kind}{self.kernel_px}x{self.kernel_px}, {channels} channels, {self.size_px} px{stride}"


def depthwise(size_px: int, channels: int, kernel_px: int, stride: int = 1) -> Layer:
    """Return a depthwise layer of EfficientNet-B0."""
    return Layer(32, size_px, channels, channels, kernel_px, stride, depthwise=True)


LAYERS = (
    Layer(64, 32, 3, 64, 3),
    Layer(64, 64, 3, 64, 7, 2),
    Layer(64, 32, 64, 64, 3),
    Layer(64, 32, 64, 128, 3, 2),
    Layer(64, 16, 128, 128, 3),
    Layer(64, 16, 128, 256, 3, 2),
    Layer(64, 8, 256, 256, 3),
    Layer(64, 8, 256, 512, 3, 2),
    Layer(64, 4, 512, 512, 3),
    Layer(64, 16, 64, 256, 1),
    Layer(64, 16, 256, 64, 1),
    Layer(64, 32, 64, 128, 1, 2),
    depthwise(64, 32, 3),
    depthwise(64, 96, 3, 2),
    depthwise(32, 144, 3),
    depthwise(32, 144, 5, 2),
    depthwise(16, 240, 5),
    depthwise(16, 240, 3, 2),
    depthwise(8, 480, 3),
    depthwise(8, 672, 5),
    depthwise(8, 672, 5, 2),
    depthwise(4, 1152, 5),
)


class Timed(NamedTuple):
    """All forms of one part of a layer in one precision."""

    layer: Layer
    part: str
    precision: str
    chosen: str
    median_ms: dict[str, float]

    @property
    def over_fastest(self) -> float:
        """How many times as long as the fastest form the chosen one takes."""
        return self.median_ms[self.chosen] / min(self.median_ms.values())


def forms_of(layer: Layer, precision: str) -> dict[str, tuple[str, dict[str, Call]]]:
    """Return for each part the chosen form and `form(x, kernel, gradient)` by name: those that fit the layer."""
    parts = _forms_of(layer, layer.geometry, precision)
    if layer.kernel_px > 1 or layer.stride == 1:
        return parts
    stride, plain = layer.stride, layer._replace(stride=1)

    def sliced(form: Call, *, towards_x: bool) -> Call:
        def run(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
            slice_pixels = lambda x: x[:, ::stride, ::stride]  # noqa: E731
            found = form(slice_pixels(x), kernel, gradient)
            return jax.linear_transpose(slice_pixels, x)(found)[0] if towards_x else found

        return run

    within = _forms_of(plain, plain.geometry, precision)
    return {
        part: (
            f"sliced {chosen}",
            parts[part][1]
            | {f"sliced {name}": sliced(form, towards_x=part == "input") for name, form in forms.items()},
        )
        for part, (chosen, forms) in within.items()
    }


def _forms_of(layer: Layer, geometry: Geometry, precision: str) -> dict[str, tuple[str, dict[str, Call]]]:
    apart = {"taps", "rows"} if layer.depthwise else {"shifted", "summed"}
    chosen = chosen_forms(kernel_shape(layer), geometry, narrow=precision == "bfloat16" and fast_bfloat16())
    calls: dict[str, dict[str, Call]] = {
        "forward": {n: lambda x, k, g, f=f: f(x, k, geometry) for n, f in FORWARD_FORMS.items()},
        "input": {n: lambda x, k, g, f=f: f(g, k, x.shape, geometry) for n, f in INPUT_FORMS.items()},
        "weight": {n: lambda x, k, g, f=f: f(x, g, k.shape, geometry) for n, f in WEIGHT_FORMS.items()},
    }
    return {
        part: (getattr(chosen, part), {name: form for name, form in forms.items() if name not in apart})
        for part, forms in calls.items()
    }


def kernel_shape(layer: Layer) -> tuple[int, int, int, int]:
    """Return the shape of the kernel."""
    return layer.kernel_px, layer.kernel_px, 1 if layer.depthwise else layer.inputs, layer.outputs


class Ready(NamedTuple):
    """All forms of one part of a layer in one precision, compiled."""

    layer: Layer
    part: str
    precision: str
    chosen: str
    programs: dict[str, Call]


def make_ready(layer: Layer, precision: str) -> list[Ready]:
    """Return the three parts of a layer, each form compiled."""
    shapes = [jax.ShapeDtypeStruct(shape, DTYPES[precision]) for shape in shapes_of(layer)]
    return [
        Ready(
            layer,
            part,
            precision,
            chosen,
            {name: compiled(form, precision=precision).lower(*shapes).compile() for name, form in forms.items()},
        )
        for part, (chosen, forms) in forms_of(layer, precision).items()
    ]


def shapes_of(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of input, kernel and gradient of the output."""
    outputs_px = -(-layer.size_px // layer.stride)
    x = (layer.batch, layer.size_px, layer.size_px, layer.inputs)
    return x, kernel_shape(layer), (layer.batch, outputs_px, outputs_px, layer.outputs)


def measure(ready: Ready, runs: int) -> Timed:
    """Return the times of all forms, which take turns."""
    arrays = [
        jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), DTYPES[ready.precision])
        for seed, shape in enumerate(shapes_of(ready.layer))
    ]
    times: dict[str, list[float]] = {name: [] for name in ready.programs}
    for program in ready.programs.values():
        jax.block_until_ready(program(*arrays))
    for _ in range(runs):
        for name, program in ready.programs.items():
            if sum(times[name]) < ENOUGH_MS:
                started = time.perf_counter()
                jax.block_until_ready(program(*arrays))
                times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return Timed(ready.layer, ready.part, ready.precision, ready.chosen, medians)


def line(timed: Timed) -> str:
    """Return a row of the table."""
    layer = timed.layer
    outputs = layer.batch * (-(-layer.size_px // layer.stride)) ** 2 * layer.outputs
    gflop = 2e-9 * outputs * layer.kernel_px**2 * (1 if layer.depthwise else layer.inputs)
    forms = "  ".join(
        f"{name}{'*' if name == timed.chosen else ''} {ms:.2f} ms {gflop / ms * 1e3:.0f} GFLOP/s"
        for name, ms in timed.median_ms.items()
    )
    note = f"  <- {timed.over_fastest:.2f}x the fastest" if timed.over_fastest > NEAR else ""
    return f"{layer.name:46} {timed.part:8} {timed.precision:9} {forms}{note}"


def pool_figure(precision: str, runs: int) -> Figure:
    """Return how many times as long XLA's own max pool takes as that of the networks, with its gradient."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 64, 64, 64), np.float32), DTYPES[precision])

    def windowed(x: jax.Array) -> jax.Array:
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

    pools = (windowed, max_pool_3x3)
    programs = [compiled(jax.grad(lambda x, pool=pool: pool(x).sum()), precision=precision) for pool in pools]
    times: list[list[float]] = [[], []]
    for run in range(runs + 1):  # the first compiles
        for program, each in zip(programs, times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(program(x))
            each += [time.perf_counter() - started] if run else []
    ratios = tuple(a / b for a, b in zip(*times, strict=True))
    what = "max pool of 32 images of 64 px, 64 channels, with its gradient"
    return Figure(f"{what}, {precision}: XLA's own / ours", "x", ratios)


def figures_of(found: list[Timed], part: str, precision: str) -> list[Figure]:
    """Return how good the choice is, over the layers."""
    of = [timed for timed in found if (timed.part, timed.precision) == (part, precision)]
    near = sum(timed.over_fastest <= NEAR for timed in of) / len(of)
    gains = tuple(timed.median_ms["lax"] / timed.median_ms[timed.chosen] for timed in of)
    what = f"{part}, {precision}"
    return [
        Figure(f"{what}: layers whose form is within 10 % of the fastest", "", (near,), ">=", 1.0),
        Figure(f"{what}: XLA's own form / the chosen one, over layers", "x", gains),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="timed calls of each form [9]")
    runs = parser.parse_args().runs
    backend = configure(device="cpu")
    precisions = ("float32", "bfloat16") if fast_bfloat16() else ("float32",)
    ready = [each for layer in LAYERS for precision in precisions for each in make_ready(layer, precision)]
    print(f"{sum(len(each.programs) for each in ready)} programs compiled", flush=True)
    found: list[Timed] = []
    for each in ready:
        found.append(measure(each, runs))
        print(line(found[-1]), flush=True)
    figures = [
        figure
        for part in ("forward", "input", "weight")
        for precision in precisions
        for figure in figures_of(found, part, precision)
    ]
    figures += [pool_figure(precision, runs) for precision in precisions]
    rows = [{**timed._asdict(), "layer": timed.layer.name, "over_fastest": timed.over_fastest} for timed in found]
    save_results("convolution", figures, layers=rows, threads=backend.threads, runs=runs)


if __name__ == "__main__":
    main()
