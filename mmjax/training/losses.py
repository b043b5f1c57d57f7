"""Losses: pure functions of a batch's outputs that return one number, each usable alone.

Every loss is a weighted mean over rows. A row of weight 0 changes nothing, whatever it holds, so padding is free.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import UNSET

from mmjax.config import ClassWeight, Task, Training
from mmjax.errors import ConfigError, did_you_mean

Loss = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""`loss(outputs f32[B, O] or f32[B, E, O], targets, weight f32[B] or None) -> f32[]`; of E members their mean loss."""


def make_loss(training: Training, *, task: Task, class_weights: np.ndarray | None = None) -> Loss:
    """Return the configured loss; `class_weights` come from `class_weight_array`, or from `label_weight_array`.

    Of outputs f32[B, E, O] it is the mean of the E members' losses, not the loss of their mean: members learn apart.
    ConfigError where the loss does not suit the task.
    """
    name = training.loss
    assert name is not UNSET
    several = task == "multilabel" and name in ("bce", "focal")
    fits = "regression" if name in ("mse", "mae", "huber", "pinball") else "classification"
    if fits != task and not several:
        raise ConfigError(f"training.loss: expected a loss for {task}, got '{name}', which is for {fits}")
    weights = None if class_weights is None else np.asarray(class_weights, np.float32)
    match name:
        case "cross_entropy":
            smoothing = training.label_smoothing
            assert smoothing is not UNSET
            return _of_rows(partial(cross_entropy, label_smoothing=smoothing, class_weights=weights))
        case "focal" if several:
            return _of_rows(partial(binary_focal, gamma=training.focal_gamma, class_weights=weights))
        case "focal":
            return _of_rows(partial(focal, gamma=training.focal_gamma, class_weights=weights))
        case "bce":
            return _of_rows(partial(binary_cross_entropy, class_weights=weights))
        case "mse":
            return _of_rows(mean_squared_error)
        case "mae":
            return _of_rows(mean_absolute_error)
        case "huber":
            return _of_rows(partial(huber, delta=training.huber_delta))
        case "pinball":
            return _of_rows(partial(pinball, quantiles=training.quantiles))
        case _:
            assert_never(name)


def _of_rows(function: Callable[..., jax.Array]) -> Loss:
    def loss(outputs: jax.Array, targets: jax.Array, weight: jax.Array | None = None) -> jax.Array:
        if outputs.ndim < 3:
            return function(outputs, targets, weight=weight)
        return jax.vmap(lambda own: function(own, targets, weight=weight), in_axes=1)(outputs).mean()

    return loss


def class_weight_array(
    setting: Literal["none", "balanced"] | tuple[ClassWeight, ...], classes: Sequence[str], label_counts: np.ndarray
) -> np.ndarray | None:
    """Return `f32[K]` for `training.class_weights`, or None for "none".

    "balanced" is N / (classes present * rows of the class) over the training rows `label_counts i64[K]`, so that the
    mean weight of a row is 1; a class without rows weighs 1. ConfigError for labels that are no class, or given twice.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.asarray(label_counts, np.float64)
        fair = counts.sum() / max(np.count_nonzero(counts), 1)
        return np.divide(fair, counts, out=np.ones(len(counts)), where=counts > 0).astype(np.float32)
    given = [each.label for each in setting]
    problems = [_unknown_class(label, classes) for label in given if label not in classes]
    problems += [
        f"training.class_weights: label '{x}' is given twice" for x in dict.fromkeys(given) if given.count(x) > 1
    ]
    if problems:
        raise ConfigError(problems)
    weights = {each.label: each.weight for each in setting}
    return np.array([weights.get(label, 1.0) for label in classes], np.float32)


def label_weight_array(
    setting: Literal["none", "balanced"] | tuple[ClassWeight, ...], names: Sequence[str], held: np.ndarray, rows: int
) -> np.ndarray | None:
    """Return `f32[L, 2]`, the weights of no and yes of each label, for `training.class_weights`; None for "none".

    "balanced" is for each label what `class_weight_array` says of its two values; `held i64[L]` of the training `rows`
    hold it. A list of {label, weight} weighs yes of the labels that it names. ConfigError as `class_weight_array`.
    """
    if setting == "balanced":
        counts = np.stack([rows - held, held], axis=1)
        return np.stack([found for row in counts if (found := class_weight_array(setting, ("", ""), row)) is not None])
    yes = class_weight_array(setting, names, held)
    return None if yes is None else np.stack([np.ones_like(yes), yes], axis=1)


def _unknown_class(label: str, classes: Sequence[str]) -> str:
    listed = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    return f"training.class_weights: expected one of {listed}, got '{label}'{did_you_mean(label, classes)}"


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | np.ndarray | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Return the mean of minus the log softmax probability of `labels i32[B]` under `logits f32[B, K]`.

    Smoothing gives the true class 1 - s + s/K and the others s/K. `class_weights f32[K]` multiply row weights, and the
    mean is over their products (as PyTorch's).
    """
    logits = _without_padding(logits, weight)
    log_probabilities = jax.nn.log_softmax(logits)
    rows = -(1.0 - label_smoothing) * _of_label(log_probabilities, labels)
    if label_smoothing:
        rows = rows - label_smoothing * log_probabilities.mean(axis=-1)
    return _mean(rows, _class_weighted(weight, labels, class_weights))


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: jax.Array | np.ndarray | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Return the mean of `-(1 - p)**gamma * log(p)`, p the softmax probability of the true class.

    `labels i32[B]`, `logits f32[B, K]`; gamma 0 is `cross_entropy`. Lin et al. 2017 (arXiv 1708.02002), eq. 4.
    """
    logits = _without_padding(logits, weight)
    log_p = _of_label(jax.nn.log_softmax(logits), labels)
    # From logs: 1 - p cancels to 0 near p = 1, where the gradient of a power below 1 is infinite.
    other = jnp.arange(logits.shape[-1])[None, :] != labels[:, None]
    log_rest = jax.nn.logsumexp(logits, axis=-1, where=other) - jax.nn.logsumexp(logits, axis=-1)
    return _mean(-jnp.exp(gamma * log_rest) * log_p, _class_weighted(weight, labels, class_weights))


def binary_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    class_weights: jax.Array | np.ndarray | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Return the mean sigmoid cross-entropy of `logits f32[B, T]`, averaged over the T columns.

    `targets` are binary labels i32[B] (then T is 1 and `class_weights f32[2]` apply), or f32[B, T] in [0, 1] for
    several labels a row (then `class_weights f32[T, 2]` do, of no and yes of each).
    """
    logits = _without_padding(logits, weight)
    columns = targets[:, None] if targets.ndim == 1 else _without_padding(targets, weight)
    rows = jnp.maximum(logits, 0.0) - logits * columns + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if targets.ndim > 1:
        return _mean_of_cells(rows, columns, class_weights, weight)
    return _mean(rows.mean(axis=-1), _class_weighted(weight, targets, class_weights))


def binary_focal(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma: float = 2.0,
    class_weights: jax.Array | np.ndarray | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Return the mean of `-(1 - p)**gamma * log(p)`, p the sigmoid probability of what is true of each label.

    `logits f32[B, T]`, `targets f32[B, T]` of 0 and 1; gamma 0 is `binary_cross_entropy`. arXiv 1708.02002, eq. 4.
    """
    logits, columns = _without_padding(logits, weight), _without_padding(targets, weight)
    towards = jnp.where(columns > 0.5, logits, -logits)
    cells = -jnp.exp(gamma * jax.nn.log_sigmoid(-towards)) * jax.nn.log_sigmoid(towards)
    return _mean_of_cells(cells, columns, class_weights, weight)


def _mean_of_cells(
    cells: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | np.ndarray | None,
    weight: jax.Array | None,
) -> jax.Array:
    """Return the mean of `cells f32[B, T]` by the weights of rows and of what is true of each label."""
    if class_weights is None:
        return _mean(cells.mean(axis=-1), weight)
    no, yes = jnp.moveaxis(jnp.asarray(class_weights), -1, 0)
    weights = no[None, :] * (1.0 - targets) + yes[None, :] * targets
    weights = weights if weight is None else weights * weight[:, None]
    return _mean(cells.reshape(-1), weights.reshape(-1))


def mean_squared_error(outputs: jax.Array, targets: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
    """Return the mean of squared errors of `outputs f32[B, T]`, averaged over T."""
    return _mean(jnp.square(_errors(outputs, targets, weight)).mean(axis=-1), weight)


def mean_absolute_error(outputs: jax.Array, targets: jax.Array, *, weight: jax.Array | None = None) -> jax.Array:
    """Return the mean of absolute errors of `outputs f32[B, T]`, averaged over T."""
    return _mean(jnp.abs(_errors(outputs, targets, weight)).mean(axis=-1), weight)


def huber(outputs: jax.Array, targets: jax.Array, *, delta: float = 1.0, weight: jax.Array | None = None) -> jax.Array:
    """Return the mean Huber loss of `outputs f32[B, T]`: `e**2 / 2` up to `delta`, then linear; averaged over T."""
    error = jnp.abs(_errors(outputs, targets, weight))
    small = jnp.minimum(error, delta)
    return _mean((0.5 * small**2 + delta * (error - small)).mean(axis=-1), weight)


def pinball(
    outputs: jax.Array, targets: jax.Array, *, quantiles: Sequence[float], weight: jax.Array | None = None
) -> jax.Array:
    """Return the mean over rows and Q quantiles of `max(q * e, (q - 1) * e)`, e the target less the output.

    `outputs f32[B, Q]`, `targets f32[B, 1]`. Its least value is at the quantiles. Koenker & Bassett 1978, equation 3.1.
    """
    error = _without_padding(targets, weight) - _without_padding(outputs, weight)
    share = jnp.asarray(quantiles, jnp.float32)[None, :]
    return _mean(jnp.maximum(share * error, (share - 1.0) * error).mean(axis=-1), weight)


def _of_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Return `values[b, labels[b]]`: a sum over a mask, whose gradient needs no scatter (slow on every backend)."""
    own = jnp.arange(values.shape[-1])[None, :] == labels[:, None]
    return jnp.sum(values, axis=-1, where=own)


def _errors(outputs: jax.Array, targets: jax.Array, weight: jax.Array | None) -> jax.Array:
    return _without_padding(outputs, weight) - _without_padding(targets, weight)


def _without_padding(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Return `values` with rows of weight 0 as zeros, so that not even a NaN there reaches the loss or its gradient."""
    return values if weight is None else jnp.where((weight > 0)[:, None], values, 0.0)


def _class_weighted(
    weight: jax.Array | None, labels: jax.Array, class_weights: jax.Array | np.ndarray | None
) -> jax.Array | None:
    if class_weights is None or labels.ndim > 1:
        return weight
    per_row = jnp.asarray(class_weights)[labels]
    return per_row if weight is None else weight * per_row


def _mean(rows: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Return the weighted mean of `rows f32[B]`, 0 where all weigh 0."""
    if weight is None:
        return rows.mean()
    total = weight.sum()
    return jnp.sum(rows * weight) / jnp.where(total > 0, total, 1.0)
