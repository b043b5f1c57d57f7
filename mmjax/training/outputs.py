"""Output: how labels become the targets of the loss, and how a network's outputs become a prediction.

It travels in the bundle: its state is fitted on training labels and is a pytree of arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compiled
from mmjax.errors import ConfigError
from mmjax.schema import Target
from mmjax.training import label_outputs
from mmjax.training.calibration import best_temperature, log_of
from mmjax.training.fold_means import MEAN_TEMPERATURE, finite_log, folds_apart, mean_of_each_fold

CLASSIFICATION_LOSSES = ("cross_entropy", "focal", "bce")
REGRESSION_LOSSES = ("mse", "mae", "huber", "pinball")
MULTILABEL_LOSSES = ("bce", "focal")
_LOSSES = {
    "classification": CLASSIFICATION_LOSSES,
    "regression": REGRESSION_LOSSES,
    "multilabel": MULTILABEL_LOSSES,
}


class Prediction(NamedTuple):
    """What a model says of B rows."""

    prediction: jax.Array
    """i32[B] class index, i32[B, L] 1 where a label holds, or f32[B, T] in the target's own unit."""
    probabilities: jax.Array | None
    """f32[B, K], rows sum to 1, or f32[B, L] of labels, each by itself; None for regression."""
    uncertainty: jax.Array | None = None
    """How far the members of a model are from one another, see `mean_of_members`; None for a model of one member.
    f32[B] for classification and labels, f32[B, T] in the target's own unit for regression."""
    sets: jax.Array | None = None
    """bool[B, K]: the classes in the conformal set, or bool[B, L] of labels; None without `training.coverage`."""
    intervals: jax.Array | None = None
    """f32[B, T, 2]: lower and upper end, in the target's own unit; None without `training.coverage`."""
    abstained: jax.Array | None = None
    """bool[B]: the largest probability is too small to answer, or that of yes or no of some label; None without
    `training.abstain_below`."""
    quantiles: jax.Array | None = None
    """f32[B, Q]: of one target, ascending, in its own unit, none widened by `training.coverage`; None but for the loss
    `pinball`."""


class Output(NamedTuple):
    """The end of a network. Only `fit` runs on the host; the others are pure and traceable."""

    size: int
    """O, the number of outputs that the network must have."""
    fit: Callable[[np.ndarray], Any]
    """`fit(training labels) -> state`, a pytree of arrays."""
    targets: Callable[[Any, jax.Array], jax.Array]
    """`targets(state, labels) -> what the loss compares outputs with`."""
    apply: Callable[[Any, jax.Array], Prediction]
    """`apply(state, outputs f32[B, O]) -> Prediction`."""
    calibrate: Callable[[Any, np.ndarray, np.ndarray, np.ndarray | None], Any] | None = None
    """`calibrate(state, outputs f32[N, O], labels, weights) -> state` with the temperature that suits these rows, which
    were not trained on; None for a number."""


def build_output(
    target: Target,
    loss: str,
    *,
    positive_index: int = 1,
    members: int = 1,
    folds: int = 1,
    quantiles: tuple[float, ...] = (0.5,),
    clamp: bool = False,
) -> Output:
    """Return the Output for a target and a loss; ConfigError where they do not suit each other.

    Of several members, as many of each of `folds`, it is that of their mean; `quantiles` are those of the loss
    `pinball`, `clamp` is that of `standardized_output`. What `mmjax.training.decide` adds to the state of any of them
    is applied after it, see `decided`.
    """
    if loss not in (fitting := _LOSSES[target.task]):
        raise ConfigError(f"training.loss: expected one of {', '.join(fitting)} for {target.task}, got '{loss}'")
    if target.task == "multilabel":
        return labels_output(len(target.labels), members, folds)
    output = _plain_output(target, loss, quantiles, clamp)
    output = mean_of_members(output, members, folds) if members > 1 else output

    def apply(state: Any, outputs: jax.Array) -> Prediction:
        found = output.apply(state, outputs)
        if members == 1 and found.probabilities is not None and ("doubt" in state or "mixing" in state):
            probabilities = _mixed(state, found.probabilities)
            found = found._replace(prediction=_first_largest(probabilities), probabilities=probabilities)
        return decided(state, found, positive_index=positive_index)

    return output._replace(apply=apply)


def decided(state: Any, found: Prediction, *, positive_index: int = 1) -> Prediction:
    """Return the Prediction with all that the state says beside calibrated probabilities; it may say nothing.

    `threshold f32[]`, of two classes: the positive one where its probability reaches it. `least_probability f32[]`:
    classes as probable are in the set. `half_width f32[T]`: of the intervals, or what widens those of quantiles.
    `abstain_below f32[]`.
    """
    probabilities = found.probabilities
    if probabilities is None:
        if "half_width" not in state:
            return found
        half = state["half_width"][None, :]
        low, high = (found.prediction,) * 2 if found.intervals is None else jnp.moveaxis(found.intervals, -1, 0)
        return found._replace(intervals=jnp.stack([low - half, high + half], axis=-1))
    if "threshold" in state:
        positive = probabilities[:, positive_index] >= state["threshold"]
        found = found._replace(prediction=jnp.where(positive, positive_index, 1 - positive_index).astype(jnp.int32))
    if "least_probability" in state:
        found = found._replace(sets=probabilities >= state["least_probability"])
    if "abstain_below" in state:
        found = found._replace(abstained=probabilities.max(axis=-1) < state["abstain_below"])
    return found


def _mixed(state: Any, probabilities: jax.Array) -> jax.Array:
    """Return `matrix_scaling.mixed` of `calibration.doubted` probabilities f32[..., K], in f32.

    `doubt f32[]`: the share of the probabilities that is spread evenly; `mixing f32[K, K]` and `offsets f32[K]`: a
    `matrix_scaling.Mixing` of what that leaves. The state may hold both, one or none.
    """
    if "doubt" in state:
        probabilities = (1.0 - state["doubt"]) * probabilities + state["doubt"] / probabilities.shape[-1]
    if "mixing" not in state:
        return probabilities
    logs = finite_log(probabilities)
    centred = logs - logs.mean(axis=-1, keepdims=True)
    mixed = jnp.matmul(centred, state["mixing"], precision="highest")
    return jax.nn.softmax(mixed + jnp.broadcast_to(state["offsets"], mixed.shape))


def _plain_output(target: Target, loss: str, quantiles: tuple[float, ...], clamp: bool) -> Output:
    if target.task == "regression":
        return quantile_output(quantiles) if loss == "pinball" else standardized_output(1, clamp=clamp)
    if loss != "bce":
        return softmax_output(len(target.classes))
    if len(target.classes) != 2:
        raise ConfigError(
            f"training.loss: bce expected a target of 2 classes, got {len(target.classes)} in "
            f"'{target.column}'; use cross_entropy"
        )
    return sigmoid_output()


def softmax_output(k: int) -> Output:
    """Return the Output of k logits for labels i32[B]: the most probable class, the first of tied ones."""

    def apply(state: Any, outputs: jax.Array) -> Prediction:
        probabilities = jax.nn.softmax(_tempered(state, outputs))
        return Prediction(_first_largest(probabilities), probabilities)

    return Output(k, _temperature_of_1, _labels_as_they_are, apply, _with_temperature)


def _tempered(state: Any, outputs: jax.Array) -> jax.Array:
    """Logits over the temperature; a bundle from before there was one has none."""
    logits = outputs.astype(jnp.float32)
    return logits / state["temperature"] if "temperature" in state else logits


def _temperature_of_1(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"temperature": np.ones((), np.float32)}


def _with_temperature(state: Any, outputs: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> Any:
    logits = outputs if outputs.shape[1] > 1 else np.concatenate([np.zeros_like(outputs), outputs], axis=1)
    return state | {"temperature": np.float32(best_temperature(logits, labels, weight))}


def _first_largest(values: jax.Array) -> jax.Array:
    """Return the index of the first largest of K values, i32[B]; of the first NaN where there is one.

    What `argmax` returns. In JAX 0.12 each trace of `argmax` makes a reducer that equals no other, and JAX keeps all of
    them: a server would keep 130 KiB of each model that it has ever loaded.
    """
    found = (values == values.max(axis=-1, keepdims=True)) | jnp.isnan(values)
    index = jnp.arange(values.shape[-1], dtype=jnp.int32)
    return jnp.where(found, index, jnp.int32(values.shape[-1])).min(axis=-1)


def sigmoid_output() -> Output:
    """Return the Output of one logit, that of class 1, for labels i32[B] of two classes."""

    def apply(state: Any, outputs: jax.Array) -> Prediction:
        logit = _tempered(state, outputs[:, 0])
        probabilities = jnp.stack([jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)], axis=-1)
        return Prediction((logit > 0).astype(jnp.int32), probabilities)

    return Output(1, _temperature_of_1, _labels_as_they_are, apply, _with_temperature)


def labels_output(labels: int, members: int = 1, folds: int = 1) -> Output:
    """Return the Output of a logit for each of L labels, for `i32[B, L]` of 0 and 1; see `label_outputs`.

    Of several members it is that of their mean, as in `mean_of_members`. `threshold f32[L]` in the state is each
    label's own; from `least_probability f32[]` on, one for all, labels are in the set.
    """

    def apply(state: Any, outputs: jax.Array) -> Prediction:
        apart = None
        if members > 1:
            probabilities, apart = label_outputs.mean_probabilities(state, outputs, folds)
        else:
            probabilities = label_outputs.probabilities_of(state, outputs)
        found = Prediction(label_outputs.called(state, probabilities), probabilities, apart)
        if "least_probability" in state:
            found = found._replace(sets=probabilities >= state["least_probability"])
        if "abstain_below" in state:
            found = found._replace(abstained=label_outputs.unsure(probabilities, state["abstain_below"]))
        return found

    return Output(labels, _temperature_of_1, _as_floats, apply, label_outputs.with_temperature)


def standardized_output(size: int, *, clamp: bool = False) -> Output:
    """Return the Output for `f32[B, T]` targets, learnt with mean 0 and deviation 1 over the training rows.

    The state is `{"mean": f32[T], "std": f32[T]}`, computed in f64; std is 1 for a constant target. With `clamp` also
    `lowest` and `highest`, f32[T], the ends of the training targets, which answers stay within (RealMLP-TD, arXiv
    2407.04491, appendix A).
    """

    def fit(labels: np.ndarray) -> dict[str, np.ndarray]:
        values = np.asarray(labels, np.float64)
        std = values.std(axis=0)
        usable = (np.ptp(values, axis=0) > 0) & (std >= np.finfo(np.float32).tiny)
        ends = {"lowest": values.min(axis=0), "highest": values.max(axis=0)} if clamp else {}
        found = {"mean": values.mean(axis=0), "std": np.where(usable, std, 1.0), **ends}
        return {name: value.astype(np.float32) for name, value in found.items()}

    def targets(state: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
        return (labels - state["mean"][None, :]) / state["std"][None, :]

    def apply(state: dict[str, jax.Array], outputs: jax.Array) -> Prediction:
        values = outputs.astype(jnp.float32) * state["std"][None, :] + state["mean"][None, :]
        if clamp:
            values = jnp.clip(values, state["lowest"][None, :], state["highest"][None, :])
        return Prediction(values, None)

    return Output(size, fit, targets, apply)


def quantile_output(quantiles: tuple[float, ...]) -> Output:
    """Return the Output of Q quantiles `f32[B, Q]` of one target `f32[B, 1]`, learnt as `standardized_output` does.

    The median is the prediction, the first and the last quantile are the interval. Quantiles that cross are put in
    order (Chernozhukov et al. 2010, "Quantile and Probability Curves Without Crossing"). The state has `half_width
    f32[1]` too, 0: what `training.coverage` widens the interval by (negative: narrows); the quantiles stay as learnt.
    """
    one, middle = standardized_output(1), quantiles.index(0.5)

    def fit(labels: np.ndarray) -> dict[str, np.ndarray]:
        return one.fit(labels) | {"half_width": np.zeros(1, np.float32)}

    def apply(state: dict[str, jax.Array], outputs: jax.Array) -> Prediction:
        values = jnp.sort(outputs.astype(jnp.float32), axis=-1) * state["std"][None, :] + state["mean"][None, :]
        ends = jnp.stack([values[:, 0], values[:, -1]], axis=-1)
        return Prediction(values[:, middle, None], None, intervals=ends[:, None, :], quantiles=values)

    return Output(len(quantiles), fit, one.targets, apply)


def mean_of_members(output: Output, members: int, folds: int = 1) -> Output:
    """Return the Output of a network that answers `f32[B, E, O]`: what `output` makes of each of E members, averaged.

    Classification: the mean of the members' probabilities, the most probable class of it, and as `uncertainty` the mean
    total variation distance between a member's probabilities and that mean, 0 to 1. What calibrates (temperature,
    `doubt`, `mixing`) changes that mean, its logarithm over the temperature; members stay at 1. With `folds` it
    changes the mean of each fold's members, which is what answered the rows it was fitted on; the mean of these,
    its logarithm over `mean_temperature`, is the answer. Regression: the mean of the members' values, and as
    `uncertainty` their standard deviation (divided by E). `apply` raises ValueError for another number of members.
    """

    def of_members(state: Any, outputs: jax.Array) -> Prediction:
        if outputs.ndim != 3 or outputs.shape[1] != members:
            raise ValueError(f"outputs: expected f32[B, {members}, {output.size}], got shape {outputs.shape}")
        state = state | {"temperature": jnp.ones(())} if "temperature" in state else state
        flat = output.apply(state, outputs.reshape(-1, outputs.shape[-1]))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, members, *leaf.shape[1:]), flat)

    def apply(state: Any, outputs: jax.Array) -> Prediction:
        each = of_members(state, outputs)
        if each.probabilities is None:
            mean = each.prediction.mean(axis=1)
            apart = _deviation(each.prediction - mean[:, None, :])
            intervals, quantiles = (
                None if values is None else values.mean(axis=1) for values in (each.intervals, each.quantiles)
            )
            return Prediction(mean, None, apart, intervals=intervals, quantiles=quantiles)
        distance = 0.5 * jnp.abs(each.probabilities - each.probabilities.mean(axis=1, keepdims=True)).sum(axis=-1)
        of_fold = mean_of_each_fold(each.probabilities, fold_count := folds_apart(state, folds))
        probabilities = _mixed(state, jax.nn.softmax(_tempered(state, finite_log(of_fold)))).mean(axis=1)
        if fold_count > 1:
            probabilities = jax.nn.softmax(finite_log(probabilities) / state[MEAN_TEMPERATURE])
        return Prediction(_first_largest(probabilities), probabilities, distance.mean(axis=1))

    def calibrate(state: Any, outputs: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> Any:
        probabilities = compiled(of_members)(state, outputs).probabilities
        assert probabilities is not None, "a number has no temperature"
        logits = log_of(np.asarray(probabilities, np.float64).mean(axis=1))
        return state | {"temperature": np.float32(best_temperature(logits, labels, weight))}

    return output._replace(apply=apply, calibrate=calibrate if output.calibrate else None)


def _deviation(differences: jax.Array) -> jax.Array:
    """Return the root of the mean square over members of `differences f32[B, E, T]`, whose squares may overflow."""
    largest = jnp.abs(differences).max(axis=1)
    scaled = differences / jnp.where(largest > 0, largest, 1.0)[:, None, :]
    return largest * jnp.sqrt(jnp.square(scaled).mean(axis=1))


def _as_floats(state: Any, labels: jax.Array) -> jax.Array:
    return labels.astype(jnp.float32)


def _labels_as_they_are(state: Any, labels: jax.Array) -> jax.Array:
    return labels
