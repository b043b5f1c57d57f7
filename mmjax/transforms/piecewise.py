"""Piecewise-linear codes of numbers: what lets a plain network see steps and spikes in a column."""

from typing import Any

import numpy as np

from mmjax.schema import Batch
from mmjax.transforms.base import Transform
from mmjax.transforms.tabular import finite_numbers, with_dense

SHRINK = 1 / 16
"""Applied to numbers and edges alike: the difference of two f32 extremes and the inverse of a width stay normal f32."""
LEAST_WIDTH = 1e-30
"""Narrower bins are merged: their inverse would not fit f32."""


def piecewise_linear(bins: int) -> Transform:
    """Return the Transform that appends to `dense` a code of every `numeric` column over at most `bins` bins.

    The code of bin `[a, b)` is `(x - a) / (b - a)` clipped to [0, 1]; a missing number has the code 0 everywhere. Half
    of the edges are quantiles of the training rows, half are quantiles of their distinct values: in a column that is
    zero for nine rows of ten the first kind alone would leave almost no bin for the tenth. Duplicate edges are merged.
    Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features" (arXiv 2203.05556), section 3.2.
    """

    def fit(batch: Batch) -> dict[str, np.ndarray]:
        edges = [bin_edges(column, bins) for column in np.asarray(batch["numeric"]).T]
        lower = np.concatenate([edge[:-1] for edge in edges])
        width = np.concatenate([np.diff(edge.astype(np.float64)) for edge in edges])
        return {
            "lower": lower * np.float32(SHRINK),
            "upper": np.concatenate([edge[1:] for edge in edges]) * np.float32(SHRINK),
            "per_width": (1.0 / (width * SHRINK)).astype(np.float32),
            "column": np.repeat(np.arange(len(edges), dtype=np.int32), [len(edge) - 1 for edge in edges]),
        }

    def apply(state: Any, batch: Batch) -> Batch:
        numeric, xp = finite_numbers(batch)
        return with_dense(batch, _codes(state, numeric[:, state["column"]], xp))

    return Transform(fit, apply)


def piecewise_codes(bins: int) -> Transform:
    """Return the Transform that adds `codes f32[B, F, bins]`: those of `piecewise_linear`, column by column.

    A column of fewer bins has zeros in those that it lacks.
    """

    def fit(batch: Batch) -> dict[str, np.ndarray]:
        numeric = np.asarray(batch["numeric"])
        lower, upper, per_width = np.zeros((3, numeric.shape[1], bins), np.float32)
        for at, column in enumerate(numeric.T):
            edges = bin_edges(column, bins)
            count = len(edges) - 1
            lower[at, :count], upper[at, :count] = edges[:-1] * np.float32(SHRINK), edges[1:] * np.float32(SHRINK)
            per_width[at, :count] = 1.0 / (np.diff(edges.astype(np.float64)) * SHRINK)
        return {"lower": lower, "upper": upper, "per_width": per_width}

    def apply(state: Any, batch: Batch) -> Batch:
        numeric, xp = finite_numbers(batch)
        return batch | {"codes": _codes(state, numeric[:, :, None], xp)}

    return Transform(fit, apply)


def _codes(state: Any, numbers: Any, xp: Any) -> Any:
    """Return the codes of `numbers` over the bins of a state, whose arrays have their shape but for the rows."""
    lower, upper = state["lower"][None], state["upper"][None]
    x = xp.clip(numbers * np.float32(SHRINK), lower, upper)
    code = xp.minimum((x - lower) * state["per_width"][None], np.float32(1.0))
    return xp.where(xp.isnan(code), np.float32(0.0), code)


def bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return at most `bins + 1` ascending distinct edges f32 of a column; none for a constant or empty column."""
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return np.zeros(1, np.float32)
    of_rows = np.quantile(known, np.linspace(0.0, 1.0, bins - bins // 2 + 1))
    of_values = np.quantile(np.unique(known), np.linspace(0.0, 1.0, bins // 2 + 1))
    edges = np.unique(np.concatenate([of_rows, of_values]).astype(np.float32))
    return edges[np.diff(edges.astype(np.float64), prepend=-np.inf) > LEAST_WIDTH]
