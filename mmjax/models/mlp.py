"""The network for tables: embeddings for categories, then dense blocks."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import DataError
from mmjax.models.base import Model
from mmjax.models.layers import BatchNorm, Dropout, Inputs, he_normal, model_from_linen, normal_init, row_mask
from mmjax.schema import Batch

EMBEDDING_STD = 0.1
MAX_EMBEDDING_DIM = 16


def default_embedding_dim(cardinalities: tuple[int, ...]) -> int:
    """Return the size every embedding gets: fastai's rule `round(1.6 n ** 0.56)` for the largest column, at most 16.

    One size for all columns keeps them in one table, so one gather and one array to update at each step.
    Source: fastai's `emb_sz_rule` (`fastai/tabular/model.py`), whose cap is 600.

    >>> default_embedding_dim((3, 43))
    13
    """
    return min(MAX_EMBEDDING_DIM, round(1.6 * max(cardinalities) ** 0.56))


class MLP(nn.Module):
    """Hidden blocks `dense -> norm -> activation -> dropout` (plus input, if residual and of equal width), then a head.

    Weights He normal, biases 0. All embeddings live in one table, rows `N(0, 0.1)`; the row of code 0 (missing or
    unknown) starts at zero, so that an unknown category adds nothing, and learns from missing cells like any other.
    """

    outputs: int
    hidden_layers: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    normalization: Literal["none", "batch", "layer"]
    residual: bool
    cardinalities: tuple[int, ...]
    embedding_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        numeric: jax.Array | None,
        dense: jax.Array | None,
        category: jax.Array | None,
        *,
        train: bool,
        mask: jax.Array | None,
    ) -> jax.Array:
        """Return `[B, outputs]` for `numeric f32[B, F]`, `dense f32[B, D]`, `category i32[B, C]`, or None each."""
        embedded = None if category is None else self._embed(category)
        parts = [part.astype(self.dtype) for part in (numeric, dense, embedded) if part is not None]
        x = jnp.concatenate(parts, axis=-1)
        for number, width in enumerate(self.hidden_layers, start=1):
            y = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal, name=f"hidden{number}")(x)
            y = self._normalize(y, f"norm{number}", train=train, mask=mask)
            y = Dropout(self.dropout, name=f"dropout{number}")(self.activation(y), train=train)
            x = x + y if self.residual and x.shape == y.shape else y
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x)

    def _embed(self, category: jax.Array) -> jax.Array:
        """`i32[B, C] -> f32[B, C * embedding_dim]` by one gather from the table of all columns."""
        first_rows = np.cumsum((0, *self.cardinalities[:-1])).astype(np.int32)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return normal_init(EMBEDDING_STD)(key, shape, dtype).at[first_rows].set(0.0)

        table = self.param("embedding", init, (sum(self.cardinalities), self.embedding_dim), jnp.float32)
        return jnp.asarray(table)[category + first_rows[None, :]].reshape(category.shape[0], -1)

    def _normalize(self, x: jax.Array, name: str, *, train: bool, mask: jax.Array | None) -> jax.Array:
        match self.normalization:
            case "none":
                return x
            case "batch":
                return BatchNorm(name=name)(x, train=train, mask=mask)
            case "layer":
                return nn.LayerNorm(dtype=self.dtype, name=name)(x)


def make_mlp(module: MLP) -> Model:
    """Return the Model of `module` over `numeric`, `dense` and `category`, at least one of them present.

    DataError when the batch has none of them, or another number of category columns than the schema.
    """

    def read(batch: Batch) -> Inputs:
        arrays = (batch.get("numeric"), batch.get("dense"), batch.get("category"))
        if all(array is None for array in arrays):
            raise DataError(
                f"mlp: expected at least one of numeric, dense, category in the batch, "
                f"got {sorted(batch) or 'nothing'}; give the table a feature column, or choose a vision model"
            )
        category = arrays[2]
        if category is not None and category.shape[1] != len(module.cardinalities):
            raise DataError(
                f"mlp: expected {len(module.cardinalities)} category columns, as in the schema, "
                f"got {category.shape[1]}; encode the batch with the schema the model was built for"
            )
        return Inputs(arrays, row_mask(batch))

    return model_from_linen(module, read, needs_key=module.dropout > 0.0 and bool(module.hidden_layers))
