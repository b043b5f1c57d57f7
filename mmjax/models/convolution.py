"""One 2-D convolution for every network, and its gradients, each in the form that is fastest on the backend at hand.

On GPU and TPU all of it is `jax.lax`, a first layer with stride on folded pixels. On CPU each of the three is one of
several forms that compute the same, chosen for the layer at hand by `chosen_forms`; `benchmarks/convolution.py`
measures every form and says where the choice is not the fastest. What it found (two cores with AVX-512 BF16, jaxlib
0.12, ms, f32 / bf16; see docs/BENCHMARKS.md):

| layer, batch | of | XLA's own | chosen |
|---|---|---|---|
| 3x3, 64 channels, 32 px, 64 | input gradient | 49 / 26 | phases: 48 / 12 |
| the same to 128, stride 2 | input gradient | 45 / 44 | phases: 24 / 9.9 |
| 3x3, 64 channels, 32 px, 64 | weight gradient | - / 31 | rows: - / 18 |
| 3x3, 512 channels, 4 px, 64 | weight gradient | - / 17 | rows: - / 9.4 |
| 1x1, 64 to 256, 16 px, 64 | weight gradient | 9.8 / 6.5 | taps: 5.8 / 2.8 |
| 3x3, 3 to 64 channels, 32 px, 64 | weight gradient | 5.3 / 8.9 | taps: 4.6 / 3.0 |
| depthwise 5x5, 240 channels, 16 px, 32 | forward | 133 / 52 | shifted: 3.8 / 3.4 |
| | input gradient | 160 / 2.6 | phases: 4.1 / 3.3 |
| | weight gradient | 135 / 128 | summed: 13 / 16 |

In bfloat16 the forward form goes to oneDNN (`mmjax.backend`), which XLA gives no gradient: written as forward
convolutions, the gradients of input and weights go there too. The forms: `mmjax.models.convolution_forms`; each is
checked on the CPU at hand before it is used (`mmjax.models.convolution_check`).
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.backend import fast_bfloat16
from mmjax.models.convolution_check import wrong_forms
from mmjax.models.convolution_forms import (
    FORWARD_FORMS,
    INPUT_FORMS,
    WEIGHT_FORMS,
    Geometry,
    Padding,
    by_lax,
    by_lax_folded,
)

FEW_CHANNELS = 4
"""Inputs, such as images, whose patches side by side are still small."""


class Forms(NamedTuple):
    """The form of each of the three, by its name in FORWARD_FORMS, INPUT_FORMS and WEIGHT_FORMS."""

    forward: str
    input: str
    weight: str


def convolution(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int | Padding = 0, groups: int = 1
) -> jax.Array:
    """Return `x f32|bf16[B, H, W, C]` convolved with `kernel [h, w, C / groups, O]`: `[B, H', W', O]`, dtype of `x`.

    `padding` is one number of zero pixels for every side, or `((top, bottom), (left, right))`. Reverse-mode gradients
    only, on CPU. Raises TypeError where `x` and `kernel` are not of one dtype.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"convolution: expected x and kernel of one dtype, got {x.dtype} and {kernel.dtype}; cast one")
    pads: Padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    geometry = Geometry(stride, pads, groups)
    if x.shape[-1] != groups * kernel.shape[2]:  # which lax refuses in its words
        return by_lax(x, kernel, geometry)
    if jax.default_backend() != "cpu":
        folds = groups == 1 < stride <= min(kernel.shape[:2]) and x.shape[-1] <= FEW_CHANNELS
        return by_lax_folded(x, kernel, geometry) if folds else by_lax(x, kernel, geometry)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        x, stride = x[:, ::stride, ::stride], 1  # the pixels between are not looked at
    return _on_cpu(x, kernel, Geometry(stride, pads, groups))


def chosen_forms(kernel_shape: tuple[int, ...], geometry: Geometry, *, narrow: bool) -> Forms:
    """Return the fastest forms for a layer on CPU: the table of the module's docstring as a rule.

    `narrow` layers are in bfloat16, on a CPU that is fast at it (`mmjax.backend.fast_bfloat16`).
    """
    height, width, inputs, outputs = kernel_shape
    if inputs == 1 and 1 < geometry.groups == outputs:
        return Forms("shifted", "phases", "summed")
    if geometry.groups > 1:
        return Forms("lax", "lax", "lax")
    if inputs > FEW_CHANNELS and (height, width) != (1, 1):
        return Forms("lax", "phases", "rows" if narrow else "lax")
    return Forms("lax", "phases", "taps" if geometry.stride == 1 else "lax")


def _sound_form(part: Literal["forward", "input", "weight"], kernel: jax.Array, geometry: Geometry) -> str:
    """The fastest form of one part, or `lax` where this CPU computes that one wrongly.

    What is not taken is not checked: a network that only answers waits for no gradient's form.
    """
    bfloat16 = kernel.dtype == jnp.bfloat16
    narrow = part == "weight" and bfloat16 and fast_bfloat16()  # no other part depends on it
    form: str = getattr(chosen_forms(kernel.shape, geometry, narrow=narrow), part)
    wrong = form != "lax" and (part, form) in wrong_forms("bfloat16" if bfloat16 else "float32")
    return "lax" if wrong else form


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _on_cpu(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return FORWARD_FORMS[_sound_form("forward", kernel, geometry)](x, kernel, geometry)


def _forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _on_cpu(x, kernel, geometry), (x, kernel)


def _backward(
    geometry: Geometry, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return (
        INPUT_FORMS[_sound_form("input", kernel, geometry)](gradient, kernel, x.shape, geometry),
        WEIGHT_FORMS[_sound_form("weight", kernel, geometry)](x, gradient, kernel.shape, geometry),
    )


_on_cpu.defvjp(_forward, _backward)
