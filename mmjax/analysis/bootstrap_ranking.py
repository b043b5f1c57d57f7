"""ROC-AUC of a bootstrap draw, from rows that are sorted once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Ranked(NamedTuple):
    """Rows by how probable it is that they are positive."""

    order: jax.Array | np.ndarray
    """i32[N]: rows by ascending probability."""
    first: jax.Array | np.ndarray
    """i32[N]: where in that order the rows of the same probability begin,"""
    last: jax.Array | np.ndarray
    """i32[N]: and end."""
    positive: jax.Array | np.ndarray
    """f32[N]: 1 for positive rows."""


def ranked_rows(score: np.ndarray, positive: np.ndarray, padded: int) -> Ranked:
    """Return the Ranked rows of `score [n]` and `positive bool[n]`, padded."""
    n, places = len(score), np.arange(padded, dtype=np.int32)
    rows = Ranked(places, places.copy(), places + 1, np.zeros(padded, np.float32))
    rows.order[:n] = np.argsort(score, kind="stable")
    ordered = score[rows.order[:n]]
    rows.first[:n] = np.searchsorted(ordered, ordered, "left")
    rows.last[:n] = np.searchsorted(ordered, ordered, "right")
    rows.positive[:n] = positive
    return rows


def area(rows: Ranked, share: jax.Array) -> jax.Array:
    """Return the ROC-AUC by weighted ranks: the share of pairs in order, a tie counts half; NaN without a pair.

    `share f32[N]` is that of each row in the draw.
    """
    positive, share = jnp.asarray(rows.positive)[rows.order], share[rows.order]
    below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share * (1.0 - positive))])
    hits = share * positive
    return (hits * 0.5 * (below[rows.first] + below[rows.last])).sum() / (hits.sum() * below[-1])
