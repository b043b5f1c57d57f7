"""What every network is built from: convolution, norm, dropout, pools, and the step from a Linen module to a Model."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import DataError
from mmjax.models.base import Model, Variables
from mmjax.models.convolution import convolution
from mmjax.models.convolution_forms import Padding, sums_over_pixels
from mmjax.schema import Batch


def normal_init(std: float) -> Callable[[jax.Array, tuple[int, ...], Any], jax.Array]:
    """Return the initialiser that draws from N(0, std).

    It draws a flat vector: XLA on CPU compiles random bits of a 4-D shape 20 times slower than of a flat one (2.5 s
    against 0.14 s for 3x3x16x16, jaxlib 0.12), which would dominate the start of every convolutional network.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return std * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return init


def uniform_init(bound: float) -> Callable[[jax.Array, tuple[int, ...], Any], jax.Array]:
    """Return the initialiser that draws from U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return weights `[..., inputs, outputs]` of variance 2 / fan_in (He et al. 2015, arXiv 1502.01852, eq. 10)."""
    return normal_init(math.sqrt(2.0 / math.prod(shape[:-1])))(key, shape, dtype)


class Inputs(NamedTuple):
    """What a module is called with: arrays, and `mask bool[B]`, the rows that count in batch statistics (None: all)."""

    arrays: tuple[jax.Array | None, ...]
    mask: jax.Array | None


def row_mask(batch: Batch) -> jax.Array | None:
    """Return `bool[B]`, True where a row's weight is positive; None, all rows count, without weights."""
    return batch["weight"] > 0 if "weight" in batch else None


def table_inputs(family: str, cardinalities: tuple[int, ...]) -> Callable[[Batch], Inputs]:
    """Return what picks `numeric`, `dense` and `category` from a Batch, at least one of them present.

    DataError when the batch has none of them, or another number of category columns than `cardinalities`.
    """

    def read(batch: Batch) -> Inputs:
        arrays = (batch.get("numeric"), batch.get("dense"), batch.get("category"))
        if all(array is None for array in arrays):
            raise DataError(
                f"{family}: expected at least one of numeric, dense, category in the batch, "
                f"got {sorted(batch) or 'nothing'}; give the table a feature column, or choose a vision model"
            )
        category = arrays[2]
        if category is not None and category.shape[1] != len(cardinalities):
            raise DataError(
                f"{family}: expected {len(cardinalities)} category columns, as in the schema, "
                f"got {category.shape[1]}; encode the batch with the schema the model was built for"
            )
        return Inputs(arrays, row_mask(batch))

    return read


class Part(NamedTuple):
    """Some of the inputs of a layer."""

    values: jax.Array
    """f32[B, D]."""
    learned: bool
    """Whether parameters had a part in making them, which must then get their gradient."""


def side_by_side(parts: Sequence[Part], kernel: jax.Array) -> jax.Array:
    """Return `x kernel` for x the parts side by side, `[B, D]` in all, and `kernel [D, O]`.

    What is learned and what is given are multiplied apart, so that no gradient of what is given is computed, a third of
    the work of a first layer: with 700 codes of numbers it takes a quarter of the time on a CPU.
    """
    sizes = [part.values.shape[-1] for part in parts]
    stops = np.cumsum(sizes).tolist()
    total = None
    for learned in {part.learned: None for part in parts}:
        own = [index for index, part in enumerate(parts) if part.learned == learned]
        values = [parts[index].values for index in own]
        weights = [kernel[stops[index] - sizes[index] : stops[index]] for index in own]
        x, w = (
            each[0] if len(each) == 1 else jnp.concatenate(each, axis) for each, axis in ((values, -1), (weights, 0))
        )
        total = x @ w if total is None else total + x @ w
    assert total is not None, "a layer has inputs"
    return total


class Dense(nn.Module):
    """`x W + b` of inputs in parts: W He normal, b 0."""

    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *parts: Part) -> jax.Array:
        """Return `[B, units]`."""
        shape = (sum(part.values.shape[-1] for part in parts), self.units)
        kernel = jnp.asarray(self.param("kernel", he_normal, shape, jnp.float32))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.units,), jnp.float32))
        return side_by_side(parts, kernel.astype(self.dtype)) + bias.astype(self.dtype)[None, :]


def embedded(table: jax.Array, category: jax.Array, cardinalities: tuple[int, ...]) -> jax.Array:
    """Return `f32[B, C * D]` for codes `i32[B, C]` by one gather from `table f32[sum(cardinalities), D]`."""
    return table[category + first_rows(cardinalities)[None, :]].reshape(category.shape[0], -1)


def first_rows(cardinalities: tuple[int, ...]) -> np.ndarray:
    """Return the row of each column's code 0 in a table of all columns, i32[C]."""
    return np.cumsum((0, *cardinalities[:-1])).astype(np.int32)


def model_from_linen(
    module: nn.Module, read: Callable[[Batch], Inputs], *, needs_key: bool, wants_progress: bool = False
) -> Model:
    """Return `module` as a Model of pure functions; `read` picks its inputs from a Batch and refuses a wrong one.

    `init` traces the whole network once: call it under `jax.jit`, then only the initial values are computed.
    `apply` raises ValueError when it trains without a key and `needs_key`.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        inputs = read(batch)
        variables = module.init(key, *inputs.arrays, train=False, mask=None)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(
        variables: Variables,
        batch: Batch,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        inputs = read(batch)
        if not train:
            outputs: Any = module.apply(variables, *inputs.arrays, train=False, mask=None)
            return outputs.astype(jnp.float32), variables["batch_stats"]
        if needs_key and key is None:
            raise ValueError("Model.apply: expected a key, for dropout in training, got None; pass key=")
        rngs = {"dropout": key} if needs_key and key is not None else {}
        more: dict[str, Any] = {"progress": progress} if wants_progress else {}
        outputs, changed = module.apply(
            variables, *inputs.arrays, train=True, mask=inputs.mask, rngs=rngs, mutable=["batch_stats"], **more
        )
        return outputs.astype(jnp.float32), changed.get("batch_stats", {})

    return Model(init, apply)


class Convolution(nn.Module):
    """`[B, H, W, C] -> [B, H', W', channels]`: square `kernel_px`, `kernel_px // 2` zeros on every side, no bias.

    Padding is the same on both sides, as in torchvision, so that its weights give the same values here; with
    `tensorflow` it is what ceil(size / stride) outputs need, the odd pixel at the end ("SAME").
    """

    channels: int
    kernel_px: int
    stride: int = 1
    depthwise: bool = False
    dtype: Any = jnp.float32
    tensorflow: bool = False
    kernel_init: Callable[..., jax.Array] | None = None
    """None: He normal, backward form."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x` convolved."""
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.kernel_px, self.kernel_px, x.shape[-1] // groups, self.channels)
        # He's backward form, as torchvision: each input pixel of a channel meets this many weights
        fan_out = self.kernel_px**2 * self.channels // groups
        init = self.kernel_init or normal_init(math.sqrt(2.0 / fan_out))
        kernel = jnp.asarray(self.param("kernel", init, shape, jnp.float32))
        return convolution(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self._padding(x) if self.tensorflow else self.kernel_px // 2,
            groups=groups,
        )

    def _padding(self, x: jax.Array) -> Padding:
        short = [max((-(-n // self.stride) - 1) * self.stride + self.kernel_px - n, 0) for n in x.shape[1:3]]
        return (short[0] // 2, short[0] - short[0] // 2), (short[1] // 2, short[1] - short[1] // 2)


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


class Dropout(nn.Module):
    """Each value (with `rows`: each row) is zeroed with probability `rate` in training, the rest times 1 / (1 - rate).

    Two values share one random word: `rate` is rounded to 1/65536, and drawing costs half (the largest single cost of
    dropout on CPU). With `rows` this is stochastic depth (Huang et al. 2016, arXiv 1603.09382).
    """

    rate: float
    rows: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Return `x` with values dropped; `x` itself when not training or `rate` is 0."""
        threshold = round(self.rate * 65536)
        if not train or threshold == 0:
            return x
        shape = (x.shape[0], *(1,) * (x.ndim - 1)) if self.rows else x.shape
        kept = _random_u16(self.make_rng("dropout"), shape) >= threshold
        return jnp.where(kept, x * (65536 / (65536 - threshold)), jnp.zeros((), x.dtype))


class FadingDropout(nn.Module):
    """Dropout at `rate` for the first half of training, then less and less to none at its end.

    The factor is `flat_cos` of the share of training done (RealMLP, arXiv 2407.04491); as exact as Dropout's.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, progress: jax.Array | None = None) -> jax.Array:
        """Return `x` with values dropped; `x` itself when not training or `rate` is 0."""
        if not train or self.rate == 0.0:
            return x
        factor = flat_cos(jnp.zeros(()) if progress is None else progress)
        threshold = jnp.round(self.rate * factor * 65536)
        kept = _random_u16(self.make_rng("dropout"), x.shape) >= threshold.astype(jnp.uint32)
        return jnp.where(kept, x * (65536 / (65536 - threshold)), jnp.zeros((), x.dtype))


def flat_cos(progress: jax.Array) -> jax.Array:
    """Return 1 for the first half of `progress` in [0, 1], then half a cosine down to 0 at 1.

    >>> [round(float(flat_cos(t)), 3) for t in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.maximum(2.0 * progress - 1.0, 0.0)))


def _random_u16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform whole numbers in [0, 65536), `u32`."""
    count = math.prod(shape)
    words = jax.random.bits(key, ((count + 1) // 2,), jnp.uint32)
    return jnp.concatenate([words & 0xFFFF, words >> 16])[:count].reshape(shape)


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
