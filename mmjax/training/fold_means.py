"""What Outputs of many members share: the mean of each fold's, and the temperature of the mean over folds."""

from typing import Any

import jax
import jax.numpy as jnp

MEAN_TEMPERATURE = "mean_temperature"
"""f32[] in the state of the Output of the members of several folds: the temperature of the mean over folds."""


def folds_apart(state: Any, folds: int) -> int:
    """Return F, how many folds are calibrated each by itself; 1 where there are none, and of bundles from before."""
    return folds if MEAN_TEMPERATURE in state else 1


def mean_of_each_fold(each: jax.Array, folds: int) -> jax.Array:
    """Return f32[B, F, K], the means of each fold's members of `each f32[B, E, K]`, which lie beside each other."""
    return each.reshape(len(each), folds, each.shape[1] // folds, each.shape[-1]).mean(axis=2)


def finite_log(probabilities: jax.Array) -> jax.Array:
    """Return logarithms, finite also of 0."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
