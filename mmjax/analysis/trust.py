"""How far answers can be trusted, measured on labelled rows: calibration, threshold, conformal coverage, abstaining.

JSON-able figures of one split each, keyed as `training.decide.Facts` is; `analysis.answers` puts them into words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.analysis.baseline_quantiles import Quantiles, pinball_rows
from mmjax.schema import Batch, Schema
from mmjax.training.classification_metrics import (
    averaged_scores,
    calibration_error_by_chance,
    confusion_matrix,
    ratio,
    reliability_curve,
)
from mmjax.training.conformal import coverage_range, rows_worth
from mmjax.training.label_metrics import cell_scores, label_error_by_chance, label_reliability
from mmjax.training.metrics import classification_metrics
from mmjax.training.scoring import Scores

Figures = dict[str, dict[str, Any]]


def trust_figures(
    schema: Schema,
    scores: Scores,
    batch: Batch,
    *,
    state: Any,
    before: np.ndarray | None,
    levels: Sequence[float] = (),
) -> Figures:
    """Return the Figures of Scores against the truth.

    `state` is that of the Output; `before` are the probabilities f32[N, K] without a temperature, where there is one;
    `levels` are those of the quantiles, where the Scores have them.
    """
    weight = np.asarray(batch.get("weight", np.ones(len(batch["label"]))), np.float64)
    if scores.probabilities is None:
        if scores.intervals is None:
            return {}
        truth = np.asarray(batch["label"])
        intervals = _interval_figures(scores.intervals, truth, weight, schema.target.offset)
        if scores.quantiles is not None and levels:
            intervals["quantiles"] = quantile_figures(scores.quantiles, truth, weight, levels)
        return {"conformal": intervals}
    labels = np.asarray(batch["label"], np.int64)
    sides = {"before": before, "after": scores.probabilities}
    several = bool(schema.target.labels)
    figures = label_calibration_figures if several else calibration_figures
    found: Figures = {
        "calibration": {
            side: figures(probabilities.astype(np.float64), labels, weight)
            for side, probabilities in sides.items()
            if probabilities is not None
        }
        | {"shares": _share_figures(scores.probabilities, labels, weight)}
    }
    if "threshold" in state and several:
        sides = {"before": scores.probabilities > 0.5, "after": scores.prediction}
        found["threshold"] = {side: _label_figures(called, labels, weight) for side, called in sides.items()}
    elif "threshold" in state:
        called = {"before": scores.probabilities.argmax(axis=1), "after": scores.prediction}
        found["threshold"] = {
            side: _called_figures(rows, labels, schema.positive_index, weight) for side, rows in called.items()
        }
    if scores.sets is not None:
        found["conformal"] = (_label_set_figures if several else _set_figures)(scores.sets, labels, weight)
    if scores.abstained is not None:
        right = scores.prediction == labels
        right = right.all(axis=1) if several else right
        found["abstention"] = _abstention_figures(scores.abstained, right, weight)
    return found


def calibration_figures(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Return ece, brier and log_loss of `f64[N, K]`, and the reliability curve that the ece is made of.

    `ece_by_chance` is what the ece would be in the mean over as many rows if these very probabilities were exact.
    """
    metrics = classification_metrics(probabilities, labels, weight=weight)
    correct, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    chance = calibration_error_by_chance(confidence, weight) if np.isfinite(metrics["ece"]) else np.nan
    found = {name: metrics[name] for name in ("ece", "brier", "log_loss")} | {"ece_by_chance": chance}
    return found | {"curve": reliability_curve(confidence, correct, weight)}


def _share_figures(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    """Return of each class or label its mean probability, and the share of the rows that are of it, or hold it."""
    truth = labels if labels.ndim == 2 else np.eye(probabilities.shape[1])[labels]
    sides = {"predicted": probabilities.astype(np.float64), "observed": truth}
    return {side: [_mean(values[:, i], weight) for i in range(values.shape[1])] for side, values in sides.items()}


def label_calibration_figures(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Return what `calibration_figures` does, over every label of every row."""
    used = weight > 0
    if not used.any() or not np.isfinite(probabilities).all():
        return dict.fromkeys(("ece", "brier", "log_loss", "ece_by_chance"), np.nan) | {"curve": []}
    cells = probabilities[used], labels[used] > 0, weight[used]
    chance = {"ece_by_chance": label_error_by_chance(*cells)}
    return {**cell_scores(*cells), **chance, "curve": label_reliability(*cells)}


def _label_figures(called: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Return the means over labels of what `_called_figures` tells."""
    each = [_called_figures(called[:, i], labels[:, i], 1, weight) for i in range(labels.shape[1])]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _called_figures(called: np.ndarray, labels: np.ndarray, positive: int, weight: np.ndarray) -> dict[str, float]:
    confusion = confusion_matrix(called.astype(np.int64), labels, 2, weight)
    scores, hits = averaged_scores(confusion), confusion[positive, positive]
    f1 = ratio(2.0 * hits, confusion[positive].sum() + confusion[:, positive].sum())
    return {name: scores[name] for name in ("accuracy", "balanced_accuracy", "mcc")} | {"f1": float(f1)}


def _set_figures(sets: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    held = np.take_along_axis(sets, labels[:, None], axis=1)[:, 0]
    return {
        "coverage": _mean(held, weight),
        "rows": rows_worth(weight, len(weight)),
        **_size_figures(sets.sum(axis=1), weight),
    }


def _size_figures(sizes: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    shares = {str(size): _mean(sizes == size, weight) for size in np.unique(sizes)}
    return {"mean_size": _mean(sizes, weight), "sizes": shares}


def _label_set_figures(sets: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Return of sets bool[N, L] the `coverage`: the mean share of a row's true labels that its set holds.

    It is 1 - FNR, of the rows that hold any label; NaN where none does. `mean_size` and `sizes` are those of the sets
    of all rows, `mean_labels` how many labels rows hold.
    """
    held = labels > 0
    count = held.sum(axis=1)
    share = (sets & held).sum(axis=1) / np.maximum(count, 1)
    sizes = _size_figures(sets.sum(axis=1), weight)
    own = weight * (count > 0)
    return {
        "coverage": _mean(share, own),
        "rows": rows_worth(own, len(own)),
        **sizes,
        "mean_labels": _mean(count, weight),
    }


def _interval_figures(intervals: np.ndarray, labels: np.ndarray, weight: np.ndarray, offset: float) -> dict[str, Any]:
    """Return `coverage`, of how many `rows`, `mean_width`, and the shares of rows that reach below or above 0."""
    low, high = np.moveaxis(intervals.astype(np.float64), -1, 0)
    held = ((low <= labels) & (labels <= high)).mean(axis=1)
    zero = -np.float64(offset)  # labels have lost the offset
    return {
        "coverage": _mean(held, weight),
        "rows": rows_worth(weight, len(weight)),
        "mean_width": _mean((high - low).mean(axis=1), weight),
        "below_zero": _mean((low < zero).any(axis=1), weight),
        "above_zero": _mean((high > zero).any(axis=1), weight),
    }


def quantile_figures(
    quantiles: np.ndarray, labels: np.ndarray, weight: np.ndarray, levels: Sequence[float]
) -> list[dict[str, float]]:
    """Return of each level of quantiles `f32[N, Q]` how true it is to labels `f32[N, 1]`.

    `below` is the share of rows at or below the quantile, which is `level` of one that is exact; `pinball` its loss
    (`pinball_rows` of one level), in the unit of the target.
    """
    truth, values = labels.astype(np.float64), quantiles.astype(np.float64)
    return [
        {
            "level": float(level),
            "below": _mean((truth <= own)[:, 0], weight),
            "pinball": _mean(pinball_rows(truth, Quantiles((level,), own)), weight),
        }
        for level, own in zip(levels, np.split(values, len(levels), axis=1), strict=True)
    ]


def _abstention_figures(abstained: np.ndarray, right: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    return {
        "share": _mean(abstained, weight),
        "accuracy": _mean(right, weight),
        "accuracy_of_answered": _mean(right, weight * ~abstained),
    }


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(values, weights=weight)) if weight.sum() > 0 else np.nan


FITTED_TO = ("train", "validation", "out_of_fold")
"""Splits whose coverage is what it was made to be."""


def _with_range(fact: Mapping[str, Any], split: str, figures: Figures) -> Figures:
    """Return the Figures with the range that coverage is expected in, where chance decides it.

    Of quantiles as learnt there is none: how exact they are is no matter of chance.
    """
    found = figures.get("conformal")
    if found is None or split in FITTED_TO or not found.get("rows") or "coverage" not in fact:
        return figures
    expected = coverage_range(fact["coverage"], fact.get("worth", fact["rows"]), found["rows"])
    return figures | {"conformal": found | {"expected": list(expected)}}


def with_facts(
    facts: Mapping[str, Mapping[str, Any]], by_split: Mapping[str, Figures], *, new: bool = True
) -> dict[str, Any]:
    """Return the `answers` of a report: what was fitted, by kind, each with its figures by split.

    Those of sets and intervals on rows that nothing was fitted to have `expected`, the `coverage_range`; `new` is
    whether a split by another name than those of training can be of such rows.
    """
    if new:
        fact = facts.get("conformal", {})
        by_split = {split: _with_range(fact, split, figures) for split, figures in by_split.items()}
    kinds = dict.fromkeys([*facts, *(kind for figures in by_split.values() for kind in figures)])
    return {
        kind: dict(facts.get(kind, {}))
        | {"splits": {split: figures[kind] for split, figures in by_split.items() if kind in figures}}
        for kind in kinds
    }
