"""The start-up self-check of the forms of a convolution: each against NumPy, before the first network that needs it.

A form that is computed wrongly is not used: `lax`, which `mmjax.numerics_programs` checks, takes its place, with a
warning. What was found is remembered, as the other checks are (`mmjax.backend.wrong_programs`).
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import numerics, numerics_programs
from mmjax.backend import wrong_programs
from mmjax.models import convolution_forms
from mmjax.models.convolution_forms import FORWARD_FORMS, INPUT_FORMS, WEIGHT_FORMS, Geometry
from mmjax.numerics_programs import EXACT, ROUGH, Program, convolution_numpy

_PADS = ((1, 1), (1, 1))


class _Layer(NamedTuple):
    """A 3x3 layer, padded by one, on images of 9 px."""

    inputs: int
    outputs: int
    stride: int
    depthwise: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, _PADS, self.inputs if self.depthwise else 1)

    @property
    def name(self) -> str:
        return f"{'depthwise, ' if self.depthwise else ''}stride {self.stride}"


_DENSE = tuple(_Layer(16, 32, stride) for stride in (1, 2))
_DEPTHWISE = tuple(_Layer(32, 32, stride, depthwise=True) for stride in (1, 2))
_FOR: Mapping[tuple[str, str], tuple[_Layer, ...]] = {
    ("forward", "shifted"): _DEPTHWISE,
    ("input", "phases"): (*_DENSE, *_DEPTHWISE),
    ("weight", "rows"): _DENSE,
    ("weight", "taps"): (_Layer(3, 32, 1), _DENSE[1]),
    ("weight", "summed"): _DEPTHWISE,
}
"""The part of a layer and its form -> what it is tried on: all but `lax`."""


@functools.cache
def wrong_forms(precision: str) -> frozenset[tuple[str, str]]:
    """Return the parts (`forward`, `input`, `weight`) with their forms that are computed wrongly on this CPU.

    `precision` is `float32` or `bfloat16`. Warns of each.
    """
    wrong = wrong_programs(functools.partial(form_programs, precision), _SOURCE, precision=precision)
    found = {(part, form) for part, form in _FOR for name in wrong if name.startswith(f"{part} by {form},")}
    for part, form in sorted(found):
        warnings.warn(
            f"numerics: {part} of convolutions in {precision} by `{form}`: wrong on this CPU as NumPy computes it; "
            "`lax`, which is right and may be slower, is used from now on",
            RuntimeWarning,
            stacklevel=2,
        )
    return frozenset(found)


_MADE_OF = (convolution_forms, numerics_programs, numerics)
_SOURCE = b"".join(Path(str(file)).read_bytes() for file in (__file__, *(module.__file__ for module in _MADE_OF)))


def form_programs(precision: str) -> tuple[Program, ...]:
    """Return a program for each form and each kind of layer it is for, by names such as `input by phases, stride 2`."""
    return tuple(
        Program(
            f"{part} by {form}, {layer.name}",
            functools.partial(_run, _call(part, form, layer.geometry), precision),
            _inputs(layer),
            functools.partial(_expected, part, layer),
            ROUGH if precision == "bfloat16" else EXACT,
        )
        for (part, form), layers in _FOR.items()
        for layer in layers
    )


def _call(part: str, form: str, geometry: Geometry) -> Callable[..., jax.Array]:
    if part == "forward":
        return lambda x, kernel, gradient: FORWARD_FORMS[form](x, kernel, geometry)
    if part == "input":
        return lambda x, kernel, gradient: INPUT_FORMS[form](gradient, kernel, x.shape, geometry)
    return lambda x, kernel, gradient: WEIGHT_FORMS[form](x, gradient, kernel.shape, geometry)


def _run(call: Callable[..., jax.Array], precision: str, *inputs: jax.Array) -> tuple[jax.Array]:
    return (call(*(each.astype(jnp.dtype(precision)) for each in inputs)).astype(jnp.float32),)


def _inputs(layer: _Layer) -> tuple[np.ndarray, ...]:
    """Images, kernel, and the gradient of the output."""
    rng = np.random.default_rng(0)
    outputs_px = -(-9 // layer.stride)
    within = 1 if layer.depthwise else layer.inputs
    shapes = ((2, 9, 9, layer.inputs), (3, 3, within, layer.outputs), (2, outputs_px, outputs_px, layer.outputs))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def _expected(part: str, layer: _Layer, x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray) -> Any:
    """That of NumPy; a depthwise layer as a dense one."""
    diagonal = np.eye(layer.outputs) if layer.depthwise else 1.0
    output, towards_x, towards_kernel = convolution_numpy(x, kernel * diagonal, gradient, layer.stride)
    if part == "weight" and layer.depthwise:
        return ((towards_kernel * diagonal).sum(2, keepdims=True),)
    return ({"forward": output, "input": towards_x, "weight": towards_kernel}[part],)
