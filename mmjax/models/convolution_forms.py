"""The forms of a 2-D convolution and of its gradients: each computes the same, on a CPU one sooner than the others.

Which is taken where: `mmjax.models.convolution`. Measured and left out, as no faster: per-tap dots, patches side by
side for wide layers, and products of shifted inputs and shifted gradients over pieces that stay in cache.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """What a layer does with pixels: all but sizes and channels."""

    stride: int
    pads: Padding
    groups: int


def by_lax(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return XLA's own convolution of `x [B, H, W, C]` and `kernel [h, w, C / groups, O]`: `[B, H', W', O]`."""
    stride, pads, groups = geometry
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def by_lax_folded(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The same of few channels, with the pixels of a stride side by side as channels, and with stride 1.

    What a GPU's or TPU's matrix units want: a first layer has 3 channels where they take 8 at once (zeros fill up the
    last of these). After the space-to-depth of MLPerf's ResNet-50 on TPUs (Kumar et al. 2019, arXiv 1909.09756). The
    first layer of ResNet-50 at 224 px, and its gradient: a whole step of 256 images on an H200 35.4 and 34.1 ms.
    """
    stride, pads, _ = geometry
    taps = [-(-size // stride) for size in kernel.shape[:2]]
    padded = [size + sum(pad) for size, pad in zip(x.shape[1:3], pads, strict=True)]
    spans = [max((n - k) // stride + t, 0) * stride for n, k, t in zip(padded, kernel.shape[:2], taps, strict=True)]
    cuts = [(low, span - low - size) for span, size, (low, _) in zip(spans, x.shape[1:3], pads, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*cut, 0) for cut in cuts), (0, 0, 0)))
    ends = [(0, stride * t - k, 0) for t, k in zip(taps, kernel.shape[:2], strict=True)]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), (*ends, (0, 0, 0), (0, 0, 0)))
    rows, columns = (span // stride for span in spans)
    inputs, outputs = kernel.shape[2:]
    x = x.reshape(x.shape[0], rows, stride, columns, stride, inputs).transpose(0, 1, 3, 2, 4, 5)
    kernel = kernel.reshape(taps[0], stride, taps[1], stride, inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
    channels = stride**2 * inputs
    x, kernel = x.reshape(*x.shape[:3], channels), kernel.reshape(*taps, channels, outputs)
    more = -channels % 8
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, more, 0)))
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), ((0, 0, 0), (0, 0, 0), (0, more, 0), (0, 0, 0)))
    return by_lax(x, kernel, Geometry(1, ((0, 0), (0, 0)), 1))


def _taps(x: jax.Array, kernel_size: tuple[int, ...], stride: int, pads: Padding) -> list[jax.Array]:
    """The input pixels that meet each kernel tap, in the kernel's order: `[B, H', W', C]` each. Negative pads crop."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    spans = [(size - k) // stride * stride + 1 for size, k in zip(x.shape[1:3], kernel_size, strict=True)]
    return [
        x[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]


def _shifted(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, summed in f32 as `lax` does for bf16."""
    height, width, _, channels = kernel.shape
    weights = kernel.reshape(height * width, 1, 1, 1, channels).astype(jnp.float32)
    taps = _taps(x, (height, width), geometry.stride, geometry.pads)
    terms = (tap * weight for tap, weight in zip(taps, weights, strict=True))
    return sum(terms, jnp.zeros((), jnp.float32)).astype(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]


def _input_by_lax(gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda x: by_lax(x, kernel, geometry), x)(gradient)[0]


def _input_by_phases(gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """Return the gradient of the input, of `shape`, by one forward convolution for each phase of the stride.

    Pixel `stride a + r` met tap `i` for output `o` where `stride o + i = stride a + r + pad`: phase `r` has every
    `stride`-th tap, turned round, and the outputs next to `a`.
    """
    stride = geometry.stride
    rows, columns = (-(-size // stride) for size in shape[1:3])
    phases = [
        [_phase(gradient, kernel, (rows, columns), (r, q), geometry) for q in range(stride)] for r in range(stride)
    ]
    if stride == 1:
        return phases[0][0]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    return pixels.reshape(shape[0], rows * stride, columns * stride, shape[3])[:, : shape[1], : shape[2]]


def _phase(
    gradient: jax.Array, kernel: jax.Array, size: tuple[int, int], offsets: tuple[int, int], geometry: Geometry
) -> jax.Array:
    stride, pads, groups = geometry
    sides: list[tuple[int, int]] = []
    for axis, (offset, (low, _)) in enumerate(zip(offsets, pads, strict=True)):
        first, shift = (offset + low) % stride, (offset + low) // stride
        if first >= kernel.shape[axis]:  # a stride beyond the kernel: no output has seen these pixels
            channels = kernel.shape[3] if groups > 1 else kernel.shape[2]
            return jnp.zeros((gradient.shape[0], *size, channels), gradient.dtype)
        kernel = lax.slice_in_dim(kernel, first, None, stride, axis)
        sides.append((kernel.shape[axis] - 1 - shift, size[axis] + shift - gradient.shape[1 + axis]))
    kernel = lax.rev(kernel, (0, 1))
    plain = Geometry(1, (sides[0], sides[1]), groups)
    if groups > 1:
        return _shifted(gradient, kernel, plain)
    # The transpose comes last: XLA would do the other two in f32, and then the convolution as well.
    return by_lax(gradient, kernel.swapaxes(2, 3), plain)


def _weight_by_lax(x: jax.Array, gradient: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    x, gradient = _apart(x), _apart(gradient)
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    return jax.linear_transpose(lambda kernel: by_lax(x, kernel, geometry), kernel)(gradient)[0]


def _apart(x: jax.Array) -> jax.Array:
    """Return `x`, to be computed by itself: XLA transposes for the weight gradient, and would do what made `x` there
    once more, against the order of memory (a relu in bfloat16: 20 ms instead of 8).

    As whole numbers, as XLA's CPU compiler widens a bfloat16 barrier, and all around it, to f32.
    """
    if x.dtype != jnp.bfloat16:
        return lax.optimization_barrier(x)
    return lax.bitcast_convert_type(lax.optimization_barrier(lax.bitcast_convert_type(x, jnp.uint16)), jnp.bfloat16)


def _weight_by_rows(x: jax.Array, gradient: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """Of many input channels, in bfloat16: forward convolutions, which XLA gives to oneDNN, whose channels are images.

    The input is one image of columns times channels pixels a row, and the gradient the kernel that steps over it, a
    column at a time, so that a row of the result has as many pixels as there are taps and channels: enough to use every
    weight that oneDNN loads several times. XLA's own form, with images and channels swapped, has rows of three pixels.
    With stride, one such convolution for each phase, as in `_input_by_phases`.
    """
    image, weights = _images_last(x), gradient.transpose(1, 2, 0, 3)
    rows, columns = (range(min(geometry.stride, size)) for size in kernel_shape[:2])
    taps = [_taps_of_phase(image, weights, kernel_shape, (r, q), geometry) for r in rows for q in columns]
    return sum(taps[1:], taps[0])


def _taps_of_phase(
    image: jax.Array, weights: jax.Array, kernel_shape: tuple[int, ...], phase: tuple[int, int], geometry: Geometry
) -> jax.Array:
    """Return the gradient of every `stride`-th tap from `phase` on, between zeros, `[h, w, C, O]`.

    Of `image [H, W, C, B]` and the gradient `weights [H', W', B, O]`. Tap `stride t + r` met pixel
    `stride (o + t) + r - pad` for output `o`: a plain convolution of every `stride`-th pixel.
    """
    stride, inputs, outputs = geometry.stride, *kernel_shape[2:]
    taps: list[int] = []
    sides: list[tuple[int, int]] = []
    between: list[tuple[int, int, int]] = []
    for axis, first in enumerate(phase):
        taps.append(len(range(first, kernel_shape[axis], stride)))
        low = max(-((first - geometry.pads[axis][0]) // stride), 0)
        pixels = weights.shape[axis] + taps[axis] - 1 - low
        start = min(stride * low + first - geometry.pads[axis][0], image.shape[axis])
        stop = min(start + stride * (pixels - 1) + 1, image.shape[axis])
        image = lax.slice_in_dim(image, start, stop, stride, axis)
        sides.append((low, pixels - image.shape[axis]))
        between.append((first, kernel_shape[axis] - first - stride * (taps[axis] - 1) - 1, stride - 1))
    if image.size == 0:  # only padding, or no images
        return jnp.zeros(kernel_shape, image.dtype)
    found = lax.conv_general_dilated(
        image.reshape(1, image.shape[0], -1, image.shape[3]),
        weights,
        (1, 1),
        (sides[0], (sides[1][0] * inputs, sides[1][1] * inputs)),
        rhs_dilation=(1, inputs),
        dimension_numbers=_LAYOUT,
    )
    return lax.pad(found.reshape(*taps, inputs, outputs), jnp.zeros((), found.dtype), (*between, (0, 0, 0), (0, 0, 0)))


def _images_last(x: jax.Array) -> jax.Array:
    """Return `x [B, H, W, C]` as `[H, W, C, B]`, moved in memory once and by itself, as both layouts are told.

    Else XLA would make `x` once more while it moves it, against the order of memory, or move it pixel by pixel in what
    comes next (6.6 ms instead of 1.8).
    """
    order = Layout((0, 1, 2, 3))
    return with_layout_constraint(with_layout_constraint(x, order).transpose(1, 2, 3, 0), order)


def _weight_by_taps(x: jax.Array, gradient: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """Of few input channels, or one tap: patches side by side, and one product."""
    patches = jnp.concatenate(_taps(x, kernel_shape[:2], geometry.stride, geometry.pads), axis=-1)
    return _columns(patches).T.dot(_columns(gradient)).reshape(kernel_shape)


def _columns(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _weight_by_sums(x: jax.Array, gradient: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> jax.Array:
    """Of a depthwise kernel: the sums of all taps in one pass over the pixels, in f32."""
    gradient = gradient.astype(jnp.float32)
    taps = _taps(x, kernel_shape[:2], geometry.stride, geometry.pads)
    sums = sums_over_pixels([tap.astype(jnp.float32) * gradient for tap in taps])
    return jnp.stack(sums).reshape(kernel_shape).astype(x.dtype)


def sums_over_pixels(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return the sum of each `f32[B, ..., C]` over all but its last axis, `f32[C]`, in one pass over the pixels.

    As one reduction of several arrays: XLA's CPU compiler makes slow windowed sums of a large reduction of one array
    (two sums over 64 images of 32 px and 64 channels: 27 ms apart, 3 ms together; jaxlib 0.12).
    """
    if jax.default_backend() != "cpu" or arrays[0].ndim == 2:
        return [array.sum(tuple(range(array.ndim - 1))) for array in arrays]
    zeros, sums = (jnp.zeros((), jnp.float32),) * len(arrays), tuple(arrays)
    for axis in range(arrays[0].ndim - 2, 0, -1):  # one at a time: vectorised along the channels, and less rounded
        sums = lax.reduce(sums, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), (axis,))
    return [each.sum(0) for each in sums]


FORWARD_FORMS: Mapping[str, Callable[[jax.Array, jax.Array, Geometry], jax.Array]] = {
    "lax": by_lax,
    "shifted": _shifted,
}
INPUT_FORMS: Mapping[str, Callable[[jax.Array, jax.Array, tuple[int, ...], Geometry], jax.Array]] = {
    "lax": _input_by_lax,
    "phases": _input_by_phases,
}
WEIGHT_FORMS: Mapping[str, Callable[[jax.Array, jax.Array, tuple[int, ...], Geometry], jax.Array]] = {
    "lax": _weight_by_lax,
    "rows": _weight_by_rows,
    "taps": _weight_by_taps,
    "summed": _weight_by_sums,
}
