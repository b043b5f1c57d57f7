"""The probability from which on a row is called positive, chosen for a metric on rows not trained on. Host, NumPy f64.

The idea and the names are those of scikit-learn's `TunedThresholdClassifierCV`, which tries a grid; here all are tried.
"""

from typing import Literal, assert_never

import numpy as np

from mmjax.training.classification_metrics import ratio

ThresholdMetric = Literal["accuracy", "balanced_accuracy", "f1", "mcc"]
APART = 1e-6
"""Probabilities nearer to each other than this are not told apart: rounding differs by as much."""


def best_threshold(
    positive: np.ndarray, truth: np.ndarray, metric: ThresholdMetric, weight: np.ndarray | None = None
) -> float:
    """Return the threshold t in [0, 1] with the best metric of `positive >= t` against `truth bool[N]`.

    `positive f64[N]` are probabilities of the positive class. It is 0.5 where no other is better, else half way between
    two of them, of equally good ones the nearest to 0.5. `weight f64[N]` counts rows.
    """
    weight = np.ones(len(truth)) if weight is None else np.asarray(weight, np.float64)
    order = np.argsort(positive)
    values, hits = np.asarray(positive, np.float64)[order], np.where(truth, weight, 0.0)[order]
    misses = weight[order] - hits
    cuts = np.flatnonzero(np.diff(values, prepend=-1.0, append=2.0) > APART)
    below, above = np.append(0.0, values)[cuts], np.append(values, 1.0)[cuts]
    thresholds = np.clip(0.5 * (below + above), 0.0, 1.0)
    hits, misses = np.append(0.0, np.cumsum(hits)), np.append(0.0, np.cumsum(misses))
    fn, tn = hits[cuts], misses[cuts]
    scores = _scores(metric, hits[-1] - fn, fn, misses[-1] - tn, tn)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    if ((below[best] < 0.5) & (above[best] >= 0.5)).any():
        return 0.5
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - 0.5))]])


def _scores(metric: ThresholdMetric, tp: np.ndarray, fn: np.ndarray, fp: np.ndarray, tn: np.ndarray) -> np.ndarray:
    """Return the metric for each threshold; 0 where it has no denominator."""
    match metric:
        case "accuracy":
            return (tp + tn) / (tp + fn + fp + tn)
        case "balanced_accuracy":
            return 0.5 * (ratio(tp, tp + fn) + ratio(tn, tn + fp))
        case "f1":
            return ratio(2.0 * tp, 2.0 * tp + fn + fp)
        case "mcc":
            return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
        case _:
            assert_never(metric)
