"""RealMLP, the strongest published default of a network for tables (Holzmüller et al. 2024, arXiv 2407.04491).

Constants are those of "RealMLP-TD" and, for `realmlp_s`, of "RealMLP-TD-S": section 3 and appendix A of the paper, and
pytabkit 1.7.2 (`models/sklearn/default_params.py`, `models/nn_models`).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.base import Model, Rates
from mmjax.models.layers import (
    FadingDropout,
    Part,
    embedded,
    model_from_linen,
    normal_init,
    side_by_side,
    table_inputs,
    uniform_init,
)

FREQUENCIES, FREQUENCY_STD = 16, 0.1
"""Waves of each number, and the deviation that their frequencies are drawn with."""
NUMBER_DIM = 4
"""Values that an embedded number becomes: itself, and three mixtures of its waves."""
EMBEDDING_DIM, EMBEDDING_STD = 8, 1.0
"""Size of the embedding of a category, and the deviation that it is drawn with."""
BIAS_ROWS = 5
"""Training rows whose mixture decides where a unit bends (the paper's "he+5")."""
RATES = {"scaling": 6.0, "alpha": 0.1, "bias": 0.1, "waves": 0.1}
"""Factor of the learning rate by the name of a parameter, or of the layer that it is in; 1 for all others."""


class PeriodicEmbedding(nn.Module):
    """`f32[B, F] -> f32[B, F * 4]`: each number, beside a linear map of 16 cosines of it ("PBLD").

    `cos(2 pi w x + b)` with `w ~ N(0, 0.1^2)` and `b ~ U(-pi, pi)`, then weights and bias `U(-1/4, 1/4)`, and no
    activation; each number has parameters of its own. Source: the paper's section 3, after Gorishniy et al. 2022
    (arXiv 2203.05556).
    """

    @nn.compact
    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Return the embedded numbers, those of one column side by side."""
        columns, mixed = numeric.shape[-1], NUMBER_DIM - 1
        bound = 1.0 / math.sqrt(FREQUENCIES)
        frequency = self.param("frequency", normal_init(FREQUENCY_STD), (columns, FREQUENCIES), jnp.float32)
        phase = self.param("phase", uniform_init(math.pi), (columns, FREQUENCIES), jnp.float32)
        kernel = self.param("kernel", uniform_init(bound), (columns, FREQUENCIES, mixed), jnp.float32)
        offset = self.param("offset", uniform_init(bound), (columns, mixed), jnp.float32)
        wave = jnp.cos(2.0 * math.pi * frequency[None] * numeric[..., None] + phase[None])
        # A product for each column, [B, 16] x [16, 3]; einsum would leave traces in JAX's caches for each model built
        mixture = jax.lax.dot_general(wave, kernel, (((2,), (1,)), ((1,), (0,)))).swapaxes(0, 1) + offset[None]
        beside = jnp.concatenate([mixture, numeric[..., None]], axis=-1)
        return beside.reshape(numeric.shape[0], columns * NUMBER_DIM)


class NTKDense(nn.Module):
    """`x W / sqrt(inputs) + b` with `W ~ N(0, 1)` (Jacot et al. 2018, arXiv 1806.07572).

    `start`: with `data`, each column of W is divided by the deviation of its outputs over the rows at hand, and each
    bias is minus a random convex mixture of 5 of those outputs, so that units bend among the data. With `normal`,
    biases are N(0, 1). With `zeros`, both are 0.
    """

    units: int
    start: Literal["data", "normal", "zeros"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *parts: Part, scaling: jax.Array | None = None) -> jax.Array:
        """Return `f32[B, units]` of the parts side by side, D in all, each times its factor of `scaling f32[D]`.

        With `start: data` the rows of the first call decide the parameters.
        """
        inputs = sum(part.values.shape[-1] for part in parts)
        shape, root = (inputs, self.units), 1.0 / math.sqrt(inputs)

        def product(kernel: jax.Array) -> jax.Array:
            scaled = kernel if scaling is None else scaling[:, None] * kernel
            wide = [part._replace(values=part.values.astype(self.dtype)) for part in parts]
            return side_by_side(wide, scaled.astype(self.dtype)).astype(jnp.float32) * root

        def kernel_init(key: jax.Array) -> jax.Array:
            if self.start == "zeros":
                return jnp.zeros(shape, jnp.float32)
            drawn = normal_init(1.0)(key, shape, jnp.float32)
            if self.start == "normal":
                return drawn
            deviation = product(drawn).std(axis=0)
            return drawn / jnp.where(deviation > SMALLEST_DEVIATION, deviation, 1.0)[None, :]

        kernel = self.param("kernel", kernel_init)
        outputs = product(jnp.asarray(kernel))

        def bias_init(key: jax.Array) -> jax.Array:
            if self.start == "zeros":
                return jnp.zeros(self.units, jnp.float32)
            if self.start == "normal":
                return jax.random.normal(key, (self.units,), jnp.float32)
            row_key, weight_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (BIAS_ROWS, self.units), 0, outputs.shape[0])
            weights = jax.random.exponential(weight_key, (BIAS_ROWS, self.units), jnp.float32)
            chosen = jnp.take_along_axis(outputs, rows, axis=0)
            return -(weights / weights.sum(axis=0)[None, :] * chosen).sum(axis=0)

        return outputs + self.param("bias", bias_init)[None, :]


SMALLEST_DEVIATION = 1e-6
"""A unit that varies less over the rows at hand keeps its weights: nothing is known of its scale."""


class RealMLP(nn.Module):
    """Embeddings, one factor for each input, then blocks `dense -> activation -> dropout`, then a dense head.

    The activation is parametric: `x + alpha (f(x) - x)` with one alpha a unit, 1 at first. The short form, `simple`,
    has no embeddings of numbers, plain activations, standard normal weights and biases and a head of zeros.
    Dropout falls to 0 over the second half of training (`flat_cos`).
    """

    outputs: int
    hidden_layers: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    cardinalities: tuple[int, ...]
    embedding_dim: int
    simple: bool
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
        progress: jax.Array | None = None,
    ) -> jax.Array:
        """Return `[B, outputs]`; inputs as MLP's, `progress f32[]` is the share of training that is done."""
        parts = []
        if numeric is not None:
            waves = numeric if self.simple else PeriodicEmbedding(name="waves")(numeric)
            parts.append(Part(waves, learned=not self.simple))
        if dense is not None:
            parts.append(Part(dense, learned=False))
        if category is not None:
            shape = (sum(self.cardinalities), self.embedding_dim)
            table = self.param("embedding", normal_init(EMBEDDING_STD), shape, jnp.float32)
            parts.append(Part(embedded(jnp.asarray(table), category, self.cardinalities), learned=True))
        inputs = sum(part.values.shape[-1] for part in parts)
        # The factors go into the next layer's weights: what is given then needs no gradient
        scaling: Any = self.param("scaling", nn.initializers.ones, (inputs,), jnp.float32)
        start = "normal" if self.simple else "data"
        for number, width in enumerate(self.hidden_layers, start=1):
            x = NTKDense(width, start, self.dtype, name=f"hidden{number}")(*parts, scaling=scaling)
            bent = self.activation(x)
            if not self.simple:
                alpha = self.param(f"alpha{number}", nn.initializers.ones, (width,), jnp.float32)
                bent = x + alpha[None, :] * (bent - x)
            x = FadingDropout(self.dropout, name=f"dropout{number}")(bent, train=train, progress=progress)
            parts, scaling = [Part(x, learned=True)], None
        start = "zeros" if self.simple else "data"
        return NTKDense(self.outputs, start, self.dtype, name="head")(*parts, scaling=scaling)


def rates(params: Any) -> Rates:
    """Return the Rates of the parameters: those of `RATES`; the factor counts twice in the decay, as in pytabkit.

    Biases of dense layers do not decay.
    """

    def names(path: Any) -> list[str]:
        return [str(getattr(key, "key", key)).rstrip("0123456789") for key in path]

    def factor(path: Any, leaf: Any) -> float:
        return next((RATES[name] for name in names(path) if name in RATES), 1.0)

    def decay(path: Any, leaf: Any) -> float:
        return 0.0 if names(path)[-1] == "bias" else factor(path, leaf)

    return Rates(jax.tree.map_with_path(factor, params), jax.tree.map_with_path(decay, params))


def make_realmlp(module: RealMLP) -> Model:
    """Return the Model of `module` over `numeric`, `dense` and `category`, at least one of them present."""
    read = table_inputs("realmlp", module.cardinalities)
    model = model_from_linen(module, read, needs_key=module.dropout > 0.0, wants_progress=True)
    return model._replace(rates=rates)
