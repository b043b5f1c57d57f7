"""TabM-mini: many members in one network, which share all weights but a factor for each input, and their heads.

Gorishniy et al. 2024 (arXiv 2410.24210), section 3.3, and constants from `yandex-research/tabm` (`tabm.py`, README):
32 members, piecewise-linear embeddings of numbers in 16 values ("version B"), 2 blocks of 512 units with relu and
dropout 0.1. Every member sees the same batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.models.base import Model
from mmjax.models.layers import Dropout, Inputs, embedded, model_from_linen, normal_init, table_inputs, uniform_init
from mmjax.schema import Batch

MEMBERS = 32
NUMBER_DIM = 16
"""Values that an embedded number becomes."""
EMBEDDING_DIM, EMBEDDING_STD = 8, 1.0
"""Of a category that is not one-hot, as RealMLP's: TabM has one-hot ones only."""


class PiecewiseLinearEmbedding(nn.Module):
    """`numeric f32[B, F]` and its codes `f32[B, F, N]` -> `f32[B, F, 16]`: a line and a map of each code.

    The line's weights and biases start as U(-1/4, 1/4), the map at zero; no activation. Without codes the line is all.
    Source: `rtdl_num_embeddings.PiecewiseLinearEmbeddings`, version "B" (TabM, arXiv 2410.24210, appendix D).
    """

    @nn.compact
    def __call__(self, numeric: jax.Array, codes: jax.Array | None) -> jax.Array:
        """Return the embedded numbers."""
        columns, start = numeric.shape[-1], uniform_init(1.0 / math.sqrt(NUMBER_DIM))
        slope = self.param("slope", start, (columns, NUMBER_DIM), jnp.float32)
        offset = self.param("offset", start, (columns, NUMBER_DIM), jnp.float32)
        line = numeric[..., None] * slope[None] + offset[None]
        if codes is None:
            return line
        shape = (columns, codes.shape[-1], NUMBER_DIM)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.zeros, shape, jnp.float32))
        # A product for each column, [B, N] x [N, 16]
        return line + jax.lax.dot_general(codes, kernel, (((2,), (1,)), ((1,), (0,)))).swapaxes(0, 1)


def chunked_init(chunks: tuple[int, ...], *, signs: bool) -> Callable[..., jax.Array]:
    """Return the initialiser of `f32[E, D]` whose columns of one chunk start alike: from N(0, 1), or as -1 or 1.

    `chunks` add up to D, one for the values of one feature. Source: TabM's `init_scaling_`.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        drawn = normal_init(1.0)(key, (shape[0], len(chunks)), dtype)
        own = jnp.where(drawn < 0, -1.0, 1.0) if signs else drawn
        return own[:, np.repeat(np.arange(len(chunks)), chunks)]

    return init


class UniformDense(nn.Module):
    """`x W + b` with W and b from U(-1/sqrt(inputs), 1/sqrt(inputs)), PyTorch's linear layer."""

    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[..., units]`."""
        start = uniform_init(1.0 / math.sqrt(x.shape[-1]))
        return nn.Dense(self.units, dtype=self.dtype, kernel_init=start, bias_init=start, name="dense")(x)


class TabM(nn.Module):
    """Embeddings, a factor for each input and member, blocks `dense -> activation -> dropout`, a head for each member.

    Arrays lie as [E, B, units]: the blocks' products see E * B rows, and the heads' need no transpose of them.
    """

    outputs: int
    members: int
    hidden_layers: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    cardinalities: tuple[int, ...]
    embedding_dim: int
    onehots: tuple[int, ...]
    """Widths of the one-hot columns that `dense` ends with."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        numeric: jax.Array | None,
        dense: jax.Array | None,
        category: jax.Array | None,
        codes: jax.Array | None,
        *,
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Return `[B, E, outputs]`; inputs as MLP's, `codes f32[B, F, N]` those of `numeric`."""
        x, chunks = self._embed(numeric, dense, category, codes)
        start = chunked_init(chunks, signs=numeric is None)
        scaling = jnp.asarray(self.param("scaling", start, (self.members, x.shape[-1]), jnp.float32))
        x = (x[None] * scaling[:, None]).astype(self.dtype)
        for number, width in enumerate(self.hidden_layers, start=1):
            x = self.activation(UniformDense(width, self.dtype, name=f"hidden{number}")(x))
            x = Dropout(self.dropout, name=f"dropout{number}")(x, train=train)
        start = uniform_init(1.0 / math.sqrt(x.shape[-1]))
        kernel = self.param("head", start, (self.members, x.shape[-1], self.outputs), jnp.float32)
        bias = self.param("head_bias", start, (self.members, self.outputs), jnp.float32)
        each = jax.lax.dot_general(x, jnp.asarray(kernel).astype(self.dtype), (((2,), (1,)), ((0,), (0,))))
        return (each + bias[:, None]).swapaxes(0, 1)

    def _embed(
        self,
        numeric: jax.Array | None,
        dense: jax.Array | None,
        category: jax.Array | None,
        codes: jax.Array | None,
    ) -> tuple[jax.Array, tuple[int, ...]]:
        """Return the inputs f32[B, D] side by side, and how many of them are each feature's."""
        parts, chunks = [], ()
        if numeric is not None:
            numbers = PiecewiseLinearEmbedding(name="pieces")(numeric, codes)
            parts.append(numbers.reshape(numbers.shape[0], -1))
            chunks += (NUMBER_DIM,) * numeric.shape[1]
        if dense is not None:
            parts.append(dense)
            chunks += (1,) * (dense.shape[1] - sum(self.onehots)) + self.onehots
        if category is not None:
            shape = (sum(self.cardinalities), self.embedding_dim)
            table = self.param("embedding", normal_init(EMBEDDING_STD), shape, jnp.float32)
            parts.append(embedded(jnp.asarray(table), category, self.cardinalities))
            chunks += (self.embedding_dim,) * len(self.cardinalities)
        return jnp.concatenate(parts, axis=-1), chunks


def make_tabm(module: TabM) -> Model:
    """Return the Model of `module` over `numeric`, `codes`, `dense` and `category`; its outputs are `f32[B, E, O]`."""
    table = table_inputs("tabm", module.cardinalities)

    def read(batch: Batch) -> Inputs:
        found = table(batch)
        return found._replace(arrays=(*found.arrays, batch.get("codes")))

    needs_key = module.dropout > 0.0 and bool(module.hidden_layers)
    return model_from_linen(module, read, needs_key=needs_key)
