"""One 2-D convolution for every network, in the form that is fastest on the backend at hand.

`jax.lax` everywhere, but for two cases on CPU, measured by `benchmarks/convolution.py` (two cores, jaxlib 0.12, f32):

- depthwise kernels: shifted multiply-adds instead of XLA's grouped loop, and a weight gradient that walks the batch so
  that each image stays in cache (3x3, 96 channels, 32 px, batch 32: forward 110 -> 4 ms, weight gradient 135 -> 18 ms;
  forward and gradients together 10 to 30 times faster);
- strided 1x1 kernels: drop the unused pixels first, what remains is a dot (forward and gradients 1.4 times faster).

For dense kernels per-tap dots, im2col and batch-as-channel weight gradients were measured too: no gain below 64 px.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int | Padding = 0, groups: int = 1
) -> jax.Array:
    """Return `x f32|bf16[B, H, W, C]` convolved with `kernel [h, w, C / groups, O]`: `[B, H', W', O]`, dtype of `x`.

    `padding` is one number of zero pixels for every side, or `((top, bottom), (left, right))`.
    """
    pads: Padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    on_cpu = jax.default_backend() == "cpu"
    depthwise = groups > 1 and groups == x.shape[-1] == kernel.shape[-1]
    if on_cpu and depthwise:
        return _depthwise(x, kernel, stride, pads)
    if on_cpu and kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _lax_convolution(x[:, ::stride, ::stride], kernel, 1, pads, groups)
    return _lax_convolution(x, kernel, stride, pads, groups)


def _lax_convolution(x: jax.Array, kernel: jax.Array, stride: int, pads: Padding, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def _taps(x: jax.Array, kernel_size: tuple[int, ...], stride: int, pads: Padding) -> list[jax.Array]:
    """The input pixels that meet each kernel tap, in the kernel's order: `[..., H', W', C]` each."""
    batch_axes = ((0, 0),) * (x.ndim - 3)
    x = jnp.pad(x, (*batch_axes, *pads, (0, 0)))
    spans = [(size - k) // stride * stride + 1 for size, k in zip(x.shape[-3:-1], kernel_size, strict=True)]
    return [
        x[..., i : i + spans[0] : stride, j : j + spans[1] : stride, :]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]


def _shifted(x: jax.Array, kernel: jax.Array, stride: int, pads: Padding) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, summed in f32 as `lax` does for bf16."""
    height, width, _, channels = kernel.shape
    weights = kernel.reshape(height * width, 1, 1, 1, channels).astype(jnp.float32)
    terms = (tap * weight for tap, weight in zip(_taps(x, (height, width), stride, pads), weights, strict=True))
    return sum(terms, jnp.zeros((), jnp.float32)).astype(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, pads: Padding) -> jax.Array:
    return _shifted(x, kernel, stride, pads)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(
    stride: int, pads: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (input_gradient,) = jax.linear_transpose(lambda x: _shifted(x, kernel, stride, pads), x)(gradient)

    def add_image(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        image, image_gradient = (a.astype(jnp.float32) for a in pair)
        taps = _taps(image, kernel.shape[:2], stride, pads)
        return total + jnp.stack([(tap * image_gradient).sum((0, 1)) for tap in taps]), None

    start = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[-1]), jnp.float32)
    weight_gradient, _ = lax.scan(add_image, start, (x, gradient))
    return input_gradient, weight_gradient.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
