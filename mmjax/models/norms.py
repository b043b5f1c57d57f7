"""Batch norm with one pass over its input each way, and as a convolution's kernel takes it in."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.models.convolution_forms import sums_over_pixels


class BatchNorm(nn.Module):
    """`[B, ..., C]` normalised per channel over the rows of the batch in training, by running statistics otherwise.

    Statistics are f32 whatever the dtype of `x`; both moments come from one pass. Rows outside `mask bool[B]` do not
    count. `running = 0.9 running + 0.1 batch`, epsilon 1e-5, torchvision's (Ioffe & Szegedy 2015, arXiv 1502.03167).
    """

    zero_scale: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    folded: bool = False
    """Whether all but the shift is in the kernel of the convolution before it (`folded_norm`); not in training."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Return `x` normalised, scaled and shifted, in its own dtype."""
        channels = x.shape[-1]
        if self.folded:
            assert not train, "a folded norm has no statistics"
            bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (channels,), jnp.float32))
            return x + _last_axis(bias.astype(x.dtype), x)
        scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if train:
            y, mean, var = batch_norm(x, scale, bias, mask, self.epsilon)
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
            return y
        factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
        return _scaled(x.astype(jnp.float32), running_mean.value, factor, bias).astype(x.dtype)


def folded_norm(
    kernel: np.ndarray, norm: Mapping[str, np.ndarray], stats: Mapping[str, np.ndarray], epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel `[..., h, w, C, O]` and bias `f32[..., O]` of a convolution with the norm after it, as it
    infers: `norm` are its scale and bias, `stats` its running mean and variance, all `f32[..., O]`."""
    factor = norm["scale"] / np.sqrt(stats["var"] + np.float32(epsilon))
    return kernel * factor[..., None, None, None, :], norm["bias"] - stats["mean"] * factor


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `x [B, ..., C]` normalised per channel, scaled and shifted, and the mean and (biased) variance `f32[C]`.

    Statistics over the rows of `mask bool[B]`, in f32. No gradient passes through the two that are returned, and none
    goes forward. The gradient is the closed one (Ioffe & Szegedy 2015, arXiv 1502.03167, section 3), so that both of
    its sums, as both moments, take one pass over `x`.
    """
    return _batch_norm_forward(x, scale, bias, mask, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mask: jax.Array | None, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    wide, share = x.astype(jnp.float32), _pixel_share(x, mask)
    counted = wide * share
    mean, mean_of_squares = sums_over_pixels([counted, counted * wide])
    var = jnp.maximum(mean_of_squares - mean * mean, 0.0)  # rounding can make it slightly negative
    inverse = jax.lax.rsqrt(var + epsilon)
    y = _scaled(wide, mean, scale * inverse, bias).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale, mask)


def _batch_norm_backward(
    epsilon: float, saved: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
    del epsilon
    x, mean, inverse, scale, mask = saved
    gradient, below = gradients[0].astype(jnp.float32), x.astype(jnp.float32) - _last_axis(mean, x)
    towards_bias, projection = sums_over_pixels([gradient, gradient * below])
    towards_scale = projection * inverse
    through_moments = _last_axis(towards_bias, x) + below * _last_axis(towards_scale * inverse, x)
    towards_x = _last_axis(scale * inverse, x) * (gradient - _pixel_share(x, mask) * through_moments)
    return towards_x.astype(x.dtype), towards_scale, towards_bias, None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _pixel_share(x: jax.Array, mask: jax.Array | None) -> jax.Array | float:
    """The part of each pixel in a mean over the rows of `mask`: `f32[B, 1, ...]`, or a number without mask."""
    pixels = x[0].size / x.shape[-1]
    if mask is None:
        return 1.0 / (x.shape[0] * pixels)
    share = mask.astype(jnp.float32) / jnp.maximum(mask.sum() * pixels, 1.0)
    return share.reshape(-1, *(1,) * (x.ndim - 1))


def _scaled(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - _last_axis(mean, x)) * _last_axis(factor, x) + _last_axis(bias, x)


def _last_axis(values: jax.Array, x: jax.Array) -> jax.Array:
    """`values [C]` as `[1, ..., C]`, of as many axes as `x`."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
