"""The network for tables: embeddings for categories, then dense blocks."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.base import Model
from mmjax.models.layers import Dense, Dropout, Part, embedded, first_rows, model_from_linen, normal_init, table_inputs
from mmjax.models.norms import BatchNorm

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
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Return `[B, outputs]` for `numeric f32[B, F]`, `dense f32[B, D]`, `category i32[B, C]`, or None each."""
        codes = None if category is None else self._embed(category)
        given = [Part(part.astype(self.dtype), learned=False) for part in (numeric, dense) if part is not None]
        parts = given if codes is None else [*given, Part(codes.astype(self.dtype), learned=True)]
        x = jnp.concatenate([part.values for part in parts], axis=-1)
        for number, width in enumerate(self.hidden_layers, start=1):
            y = Dense(width, self.dtype, name=f"hidden{number}")(*parts)
            y = self._normalize(y, f"norm{number}", train=train, mask=mask)
            y = Dropout(self.dropout, name=f"dropout{number}")(self.activation(y), train=train)
            x = x + y if self.residual and x.shape == y.shape else y
            parts = [Part(x, learned=True)]
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x)

    def _embed(self, category: jax.Array) -> jax.Array:
        """`i32[B, C] -> f32[B, C * embedding_dim]` by one gather from the table of all columns."""
        starts = first_rows(self.cardinalities)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return normal_init(EMBEDDING_STD)(key, shape, dtype).at[starts].set(0.0)

        table = self.param("embedding", init, (sum(self.cardinalities), self.embedding_dim), jnp.float32)
        return embedded(jnp.asarray(table), category, self.cardinalities)

    def _normalize(self, x: jax.Array, name: str, *, train: bool, mask: jax.Array | None) -> jax.Array:
        match self.normalization:
            case "none":
                return x
            case "batch":
                return BatchNorm(name=name)(x, train=train, mask=mask)
            case "layer":
                return nn.LayerNorm(dtype=self.dtype, name=name)(x)


def make_mlp(module: MLP) -> Model:
    """Return the Model of `module` over `numeric`, `dense` and `category`, at least one of them present."""
    needs_key = module.dropout > 0.0 and bool(module.hidden_layers)
    return model_from_linen(module, table_inputs("mlp", module.cardinalities), needs_key=needs_key)
