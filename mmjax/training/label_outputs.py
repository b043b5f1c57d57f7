"""The Output of several yes/no labels for each row: a logit and a probability of its own for each.

Its `Prediction` holds `probabilities f32[B, L]`, which do not sum to 1, and `prediction i32[B, L]`, 1 where a label is
said to hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.training.calibration import log_of
from mmjax.training.fold_means import MEAN_TEMPERATURE, finite_log, folds_apart, mean_of_each_fold
from mmjax.training.label_metrics import best_label_temperature


def probabilities_of(state: Any, logits: jax.Array) -> jax.Array:
    """Return the sigmoid of logits over the temperature, one for all labels."""
    return jax.nn.sigmoid(logits.astype(jnp.float32) / state["temperature"])


def mean_probabilities(state: Any, logits: jax.Array, folds: int) -> tuple[jax.Array, jax.Array]:
    """Return (probabilities f32[B, L], uncertainty f32[B]) of the logits f32[B, E, L] of E members.

    The mean of the members' probabilities, its logit over the temperature: of each fold's members, where there are
    folds, and then the mean of these, its logit over the temperature of that mean. As `uncertainty` the mean distance
    of a member's probability from the mean of all, of the label where it is largest, 0 to 1.
    """
    logits, folds = logits.astype(jnp.float32), folds_apart(state, folds)
    # Of no too: 1 less a mean near 1 is 0 in f32, and the logit of a sure yes would be five times that of a sure no.
    yes, no = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    apart = jnp.abs(yes - yes.mean(axis=1, keepdims=True)).mean(axis=1).max(axis=-1)
    logit = _logit(*(mean_of_each_fold(each, folds) for each in (yes, no))) / state["temperature"]
    if folds == 1:
        return jax.nn.sigmoid(logit[:, 0]), apart
    logit = _logit(*(jax.nn.sigmoid(each).mean(axis=1) for each in (logit, -logit)))
    return jax.nn.sigmoid(logit / state[MEAN_TEMPERATURE]), apart


def _logit(yes: jax.Array, no: jax.Array) -> jax.Array:
    return finite_log(yes) - finite_log(no)


def with_temperature(state: Any, outputs: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> Any:
    """Return the state with the temperature that suits logits `[N, L]`, or `[N, E, L]` of E members."""
    logits = np.asarray(outputs, np.float64)
    if logits.ndim == 3:
        yes, no = (log_of(np.exp(-np.logaddexp(0.0, each)).mean(axis=1)) for each in (-logits, logits))
        logits = yes - no
    return state | {"temperature": np.float32(best_label_temperature(logits, labels, weight))}


def called(state: Any, probabilities: jax.Array) -> jax.Array:
    """Return i32[B, L]: which labels are said to hold, from `threshold f32[L]` on, or above one half."""
    if "threshold" not in state:
        return (probabilities > 0.5).astype(jnp.int32)
    return (probabilities >= state["threshold"][None, :]).astype(jnp.int32)


def unsure(probabilities: jax.Array, below: jax.Array) -> jax.Array:
    """Return bool[B]: rows with a label whose yes and no are both less probable than this."""
    return jnp.maximum(probabilities, 1.0 - probabilities).min(axis=-1) < below
