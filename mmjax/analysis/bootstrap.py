"""How far a metric may be off by the luck of the test rows: bootstrap intervals, and whether two models differ.

Rows are drawn anew, as many as there are, a thousand times (Efron 1979), and the metric is computed of each draw;
vmapped in JAX. The interval holds the middle 95 % of what comes out (the percentile method). The draws follow from the
seed, so two models on the same rows are compared draw by draw (paired). Of more than `MOST_ROWS` rows so many are drawn
from, and the spread is scaled by `sqrt(MOST_ROWS / rows)`: the cost is bounded, and the interval that of all rows (m
out of n, Bickel et al. 1997).
"""

import functools
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.analysis.bootstrap_labels import LabelRows, label_draw, label_rows, label_values
from mmjax.analysis.bootstrap_ranking import Ranked, area, ranked_rows
from mmjax.artifact.answers import Answers, of_labels, take_answers
from mmjax.backend import compile_ahead, compiled
from mmjax.schema import Target
from mmjax.training.classification_metrics import brier_rows, log_loss_rows, ranking_scores
from mmjax.training.metrics import regression_metrics

RESAMPLES = 1000
COVERAGE = 0.95
MOST_ROWS = 10_000
AT_ONCE = 1 << 20
"""Drawn rows held at a time."""
LEAST_ROWS = 10
"""Of fewer rows there is no interval: draws from one row are all alike, and from a few they say too little."""
ROUNDING = 1e-6
"""Of a metric's size: differences of draws that are smaller are none, as draws are in f32."""
BLOCKS = (RESAMPLES, 500, 250, 125, 50)
"""Draws at a time; each divides `RESAMPLES`, so that all blocks are one program."""

Interval = tuple[float, float]


class Resampled(NamedTuple):
    """A metric of some rows and of draws from them, in the metric's own unit."""

    value: float
    """Of all rows."""
    deviations: np.ndarray
    """f64[RESAMPLES]: by how much draws of as many rows differ from it; NaN where the metric is undefined."""


Resamples = Mapping[str, Resampled]
"""By metric; one that is undefined on the rows is not there."""


def resample(answers: Answers, *, seed: int = 0) -> Resamples:
    """Return the metrics of `metric_values` on draws of the rows; the same seed draws the same rows.

    Of Answers that are kept of `total` rows the deviations are those of so many rows. Nothing of fewer than LEAST_ROWS.
    """
    values = metric_values(answers)
    used = np.arange(len(answers.row)) if answers.weight is None else np.flatnonzero(answers.weight > 0)
    rows = len(used) * answers.total / max(len(answers.row), 1)  # of all, those that weigh something
    scale = np.sqrt(min(len(used), MOST_ROWS) / max(rows, 1.0))
    if len(used) > MOST_ROWS:
        used = np.sort(np.random.default_rng(seed).choice(used, MOST_ROWS, replace=False))
        answers = take_answers(answers, used)
    elif len(used) < len(answers.row):
        answers = take_answers(answers, used)
    if len(used) < LEAST_ROWS or not any(np.isfinite(value) for value in values.values()):
        return {}
    centre, drawn = metric_values(answers), _metrics_of_draws(answers, seed)
    found = {name: Resampled(values[name], (drawn[name] - centre[name]) * scale) for name in values}
    return {name: one for name, one in found.items() if np.isfinite(one.value) and np.isfinite(one.deviations).any()}


def intervals(found: Resamples) -> dict[str, Interval]:
    """Return the 95 % interval of each metric."""
    return {name: _interval(one.value, one.deviations) for name, one in found.items()}


def difference_intervals(a: Resamples, b: Resamples) -> dict[str, Interval]:
    """Return the 95 % interval of each metric's difference, `b - a`.

    Both of the same rows, in one order and with one seed: paired, the luck of the rows falls out as far as it is the
    same for both. Of different rows, with different seeds: unpaired, and wider.
    """
    return {name: _difference(a[name], b[name]) for name in a if name in b}


def _difference(a: Resampled, b: Resampled) -> Interval:
    """Return the interval of `b - a`; an end that only rounding keeps from 0 is 0, so that it is not left out."""
    low, high = _interval(b.value - a.value, b.deviations - a.deviations)
    least = ROUNDING * max(abs(a.value), abs(b.value))
    return (0.0 if abs(low) < least else low), (0.0 if abs(high) < least else high)


def larger_than_noise(interval: Interval) -> bool:
    """Return whether the interval of a difference leaves out 0.

    >>> larger_than_noise((0.01, 0.03)), larger_than_noise((-0.01, 0.03))
    (True, False)
    """
    return interval[0] > 0 or interval[1] < 0


def metric_values(answers: Answers) -> dict[str, float]:
    """Return the metrics that have intervals, as `mmjax.training.metrics` computes them; NaN where undefined.

    accuracy, log_loss, brier and, for two classes, roc_auc; or rmse, mae and r2; of labels those of `bootstrap_labels`.
    """
    if of_labels(answers):
        return label_values(answers)
    if answers.probabilities is None:
        found = regression_metrics(answers.prediction, answers.label, weight=answers.weight)
        return {name: found[name] for name in ("rmse", "mae", "r2")}
    binary = answers.probabilities.shape[1] == 2
    names = ("accuracy", "log_loss", "brier", *(["roc_auc"] if binary else []))
    used = np.ones(len(answers.row), bool) if answers.weight is None else answers.weight > 0
    if not used.any() or not np.isfinite(answers.probabilities[used]).all():
        return dict.fromkeys(names, np.nan)
    weight = None if answers.weight is None else answers.weight[used]
    values = [*np.average(_class_parts(answers)[used], axis=0, weights=weight)]
    if binary:
        score = answers.probabilities[used, 1].astype(np.float64)
        values.append(ranking_scores(score, answers.label[used] == 1, weight)[0])
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _interval(value: float, deviations: np.ndarray) -> Interval:
    low, high = np.nanquantile(deviations, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(value + low), float(value + high)


class ClassRows(NamedTuple):
    """What of a classifier's answers a draw needs, by row."""

    parts: np.ndarray
    """f32[N, 3]: right or not, log loss, Brier score."""
    ranked: Ranked
    """By the probability of class 1."""


class NumberRows(NamedTuple):
    """What of a regressor's answers a draw needs, by row."""

    error: np.ndarray
    """f32[N, T], over its unit."""
    target: np.ndarray
    """f32[N, T], less its mean, over its unit."""


class Units(NamedTuple):
    """What NumberRows were divided by, so that f32 holds them: f64[T] each."""

    error: np.ndarray
    target: np.ndarray


def start_resampling(target: Target, rows: int) -> Future[None]:
    """Return the Future of compiling what `resample` runs on so many rows, all of them of some weight."""
    n, k = min(rows, MOST_ROWS), len(target.classes)
    label = np.zeros(n if target.task == "classification" else (n, k or 1), np.int64)
    probabilities = np.full((n, k), 0.5, np.float32) if k else None
    parts, weight, binary = _draw_arguments(Answers(np.arange(n), label, label, probabilities, None, n))
    drawn = jax.ShapeDtypeStruct((_block(len(weight)), len(weight)), jnp.int32)
    return compile_ahead(_program(), parts.rows, weight, drawn, binary=binary)


class _Parts(NamedTuple):
    """What draws are made of, and what numbers were divided by."""

    rows: ClassRows | NumberRows | LabelRows
    units: Units | None


def _draw_arguments(answers: Answers) -> tuple[_Parts, np.ndarray, bool]:
    """Return the rows padded, their weights f32[padded], and whether there are two classes."""
    n = len(answers.row)
    padded = max(32, 1 << (n - 1).bit_length())  # few shapes, few compilations
    weight = np.zeros(padded, np.float32)
    weight[:n] = 1.0 if answers.weight is None else answers.weight / answers.weight.mean()
    if answers.probabilities is None:
        return _Parts(*_number_rows(answers, padded)), weight, False
    if of_labels(answers):
        return _Parts(label_rows(answers, padded), None), weight, False
    return _Parts(_class_rows(answers, padded), None), weight, answers.probabilities.shape[1] == 2


def _metrics_of_draws(answers: Answers, seed: int) -> dict[str, np.ndarray]:
    """Return each metric of each draw, f64[RESAMPLES]."""
    parts, weight, binary = _draw_arguments(answers)
    found = _of_draws(parts.rows, weight, len(answers.row), seed, binary=binary)
    return found if parts.units is None else _number_metrics(found, parts.units)


def _block(padded: int) -> int:
    """Return the draws at a time of so many rows."""
    return next((block for block in BLOCKS if block * padded <= AT_ONCE), BLOCKS[-1])


def _of_draws(
    rows: ClassRows | NumberRows | LabelRows, weight: np.ndarray, n: int, seed: int, *, binary: bool
) -> dict[str, np.ndarray]:
    """Return what each metric is made of, by draw f64[RESAMPLES, ...]; rows from `n` on are padding."""
    padded, random, parts = len(weight), np.random.default_rng(seed), []
    block = _block(padded)
    for _ in range(RESAMPLES // block):
        drawn = np.full((block, padded), padded, np.int32)  # what is out of bounds counts for no row
        # Drawn on the host: that takes a tenth of the time, and JAX's generator doubles that of compiling.
        drawn[:, :n] = random.integers(0, n, (block, n), np.int32)
        parts.append(_program()(rows, weight, drawn, binary=binary))
    return jax.tree.map(lambda *blocks: np.concatenate(blocks).astype(np.float64), *parts)


def _class_parts(answers: Answers) -> np.ndarray:
    """Return f64[N, 3]: right or not, log loss and Brier score of each row."""
    probabilities = np.asarray(answers.probabilities, np.float64)
    hits = answers.prediction == answers.label  # a threshold may call another class than the most probable one
    return np.stack(
        [hits, log_loss_rows(probabilities, answers.label), brier_rows(probabilities, answers.label)], axis=1
    )


def _class_rows(answers: Answers, padded: int) -> ClassRows:
    parts = np.zeros((padded, 3), np.float32)
    parts[: len(answers.row)] = _class_parts(answers)
    return ClassRows(parts, ranked_rows(np.asarray(answers.probabilities)[:, -1], answers.label == 1, padded))


def _number_rows(answers: Answers, padded: int) -> tuple[NumberRows, Units]:
    n, error = len(answers.row), answers.prediction - answers.label
    centred = answers.label - answers.label.mean(axis=0)
    units = Units(*(np.where(most > 0, most, 1.0) for most in (np.abs(error).max(axis=0), np.abs(centred).max(axis=0))))
    rows = NumberRows(*(np.zeros((padded, error.shape[1]), np.float32) for _ in units))
    rows.error[:n], rows.target[:n] = error / units.error, centred / units.target
    return rows, units


@functools.cache
def _program() -> Any:
    def of_draws(
        rows: ClassRows | NumberRows | LabelRows, weight: jax.Array, drawn: jax.Array, *, binary: bool
    ) -> dict[str, jax.Array]:
        def one(drawn: jax.Array) -> dict[str, jax.Array]:
            counts = jnp.zeros_like(weight).at[drawn].add(1.0, mode="drop") * weight
            share = counts / counts.sum()
            if isinstance(rows, NumberRows):
                return _number_sums(rows, share)
            if isinstance(rows, LabelRows):
                return label_draw(rows, share)
            return _class_metrics(rows, share, binary=binary)

        return jax.vmap(one)(drawn)

    return compiled(of_draws, static=("binary",))


def _class_metrics(rows: ClassRows, share: jax.Array, *, binary: bool) -> dict[str, jax.Array]:
    accuracy, log_loss, brier = share @ rows.parts
    found = {"accuracy": accuracy, "log_loss": log_loss, "brier": brier}
    return found | {"roc_auc": area(rows.ranked, share)} if binary else found


def _number_sums(rows: NumberRows, share: jax.Array) -> dict[str, jax.Array]:
    """Return means by target, f32[T]: squared and absolute errors, and the spread of targets."""
    mean = share @ rows.target
    return {
        "squared": share @ rows.error**2,
        "absolute": share @ jnp.abs(rows.error),
        "spread": share @ (rows.target - mean[None, :]) ** 2,
    }


def _number_metrics(sums: dict[str, np.ndarray], units: Units) -> dict[str, np.ndarray]:
    """Return the metrics f64[RESAMPLES] of the sums; r2 is NaN for a draw whose targets are all the same."""
    varies = np.where(sums["spread"] > 0, sums["spread"], np.nan) * (units.target / units.error) ** 2
    return {
        "rmse": (np.sqrt(sums["squared"]) * units.error).mean(axis=1),
        "mae": (sums["absolute"] * units.error).mean(axis=1),
        "r2": (1.0 - sums["squared"] / varies).mean(axis=1),
    }
