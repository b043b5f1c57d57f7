"""What networks are built from: initial values, convolution, dropout, and the step from a Linen module to a Model."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import DataError
from mmjax.models.base import Model, Variables
from mmjax.models.convolution import convolution
from mmjax.models.convolution_forms import Padding
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
