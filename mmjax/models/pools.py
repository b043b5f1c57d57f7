"""Pools over pixels: the largest of 3x3, with a gradient that gathers, the mean of 2x2, and that of all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Return the maximum over 3x3 windows, stride 2, one pixel of padding: `[B, H, W, C] -> [B, H/2, W/2, C]`, up.

    Rows, then columns. What ties for a maximum shares its gradient.
    """
    return _maximum_of_3(_maximum_of_3(x, 1), 2)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _maximum_of_3(x: jax.Array, axis: int) -> jax.Array:
    """Return the maximum of every window of three pixels along an axis, stride 2, one pixel of padding.

    The gradient, in reverse mode only, is written as what each pixel gets from the one or two windows that it lies in,
    so that no pixel is scattered: the pool takes a third of the time of XLA's own (`benchmarks/convolution.py`).
    """
    first, second, third = _windows_of_3(x, axis)
    return jnp.maximum(jnp.maximum(first, second), third)


def _maximum_of_3_forward(x: jax.Array, axis: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maximum = _maximum_of_3(x, axis)
    return maximum, (x, maximum)


def _maximum_of_3_backward(axis: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, maximum = saved
    first, second, third = ((pixel == maximum).astype(jnp.float32) for pixel in _windows_of_3(x, axis))
    share = (gradient.astype(jnp.float32) / (first + second + third)).astype(x.dtype)

    def from_window(next_one: int) -> jax.Array:
        """What pixel i gets of window `i // 2`, or of the next one; there is none after the last."""
        top, own = (_twice(each, axis, next_one, x.shape[axis]) for each in (maximum, share))
        return jnp.where(x == top, own.astype(jnp.float32), 0.0)

    odd = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) % 2 == 1
    return ((from_window(0) + jnp.where(odd, from_window(1), 0.0)).astype(x.dtype),)


def _windows_of_3(x: jax.Array, axis: int) -> list[jax.Array]:
    """The first, second and third pixel of every window."""
    windows = (x.shape[axis] + 1) // 2
    pads = [(1, 2 * windows - x.shape[axis]) if each == axis else (0, 0) for each in range(x.ndim)]
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    return [jax.lax.slice_in_dim(x, pixel, pixel + 2 * windows - 1, 2, axis) for pixel in range(3)]


def _twice(x: jax.Array, axis: int, start: int, size: int) -> jax.Array:
    """Return every value from `start` on along an axis twice, `size` in all: zeros where they end before."""
    pads = [(-start, start) if each == axis else (0, 0) for each in range(x.ndim)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(*pad, 0) for pad in pads])
    return jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, size, 1, axis)


_maximum_of_3.defvjp(_maximum_of_3_forward, _maximum_of_3_backward)


def average_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the mean over 2x2 pixels, stride 2, of fewer at an odd edge: `[B, H, W, C] -> [B, H/2, W/2, C]`, up.

    Summed in f32.
    """
    batch, height, width, channels = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
    sums = x.reshape(batch, rows, 2, columns, 2, channels).sum((2, 4))
    counts = np.minimum(2, height - 2 * np.arange(rows))[:, None] * np.minimum(2, width - 2 * np.arange(columns))
    return (sums / counts[None, :, :, None].astype(np.float32)).astype(x.dtype)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Return the mean over the pixels, summed in f32: `[B, H, W, C] -> [B, C]`, dtype of `x`."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
