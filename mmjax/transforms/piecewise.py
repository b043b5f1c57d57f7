"""Piecewise-linear codes of numbers: what lets a plain network see steps and spikes in a column."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.schema import Batch
from mmjax.transforms.base import Transform


def piecewise_linear(bins: int) -> Transform:
    """Return the Transform that appends to `dense` a code of every `numeric` column over at most `bins` bins.

    The code of bin `[a, b)` is `(x - a) / (b - a)` clipped to [0, 1]; a missing number has the code 0 everywhere. Half
    of the edges are quantiles of the training rows, half are quantiles of their distinct values: in a column that is
    zero for nine rows of ten the first kind alone would leave almost no bin for the tenth. Duplicate edges are merged.
    Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features" (arXiv 2203.05556), section 3.2.
    """

    def fit(batch: Batch) -> dict[str, np.ndarray]:
        edges = [bin_edges(column, bins) for column in np.asarray(batch["numeric"]).T]
        return {
            "lower": np.concatenate([edge[:-1] for edge in edges]),
            "upper": np.concatenate([edge[1:] for edge in edges]),
            "column": np.repeat(np.arange(len(edges), dtype=np.int32), [len(edge) - 1 for edge in edges]),
        }

    def apply(state: Any, batch: Batch) -> Batch:
        lower, upper = state["lower"][None, :], state["upper"][None, :]
        # Halved, so that the difference of two f32 extremes stays finite.
        x = jnp.clip(batch["numeric"][:, state["column"]], lower, upper) / 2
        code = (x - lower / 2) / (upper / 2 - lower / 2)
        code = jnp.where(jnp.isnan(code), 0.0, code)
        dense = batch.get("dense")
        return {**batch, "dense": code if dense is None else jnp.concatenate([dense, code], axis=-1)}

    return Transform(fit, apply)


def bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return at most `bins + 1` ascending distinct edges f32 of a column; none for a constant or empty column."""
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return np.zeros(1, np.float32)
    of_rows = np.quantile(known, np.linspace(0.0, 1.0, bins - bins // 2 + 1))
    of_values = np.quantile(np.unique(known), np.linspace(0.0, 1.0, bins // 2 + 1))
    return np.unique(np.concatenate([of_rows, of_values]).astype(np.float32))
