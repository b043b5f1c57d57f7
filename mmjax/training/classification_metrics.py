"""What classification metrics are made of: counts, ranking curves and scores of probabilities. Host, NumPy f64.

Every result equals scikit-learn's default where that is defined; elsewhere it is NaN, never a warning.
"""

import math
from typing import NamedTuple

import numpy as np

ECE_BINS = 15


def confusion_matrix(
    predictions: np.ndarray, labels: np.ndarray, k: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return `f64[K, K]`: the weight of rows of class i (true, rows) that were called class j (columns).

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    array([[1., 1.],
           [0., 1.]])
    """
    cells = np.asarray(labels, np.int64) * k + np.asarray(predictions, np.int64)
    return np.bincount(cells, weights=weight, minlength=k * k).astype(np.float64).reshape(k, k)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, and 0 where `whole` is 0 (scikit-learn's `zero_division=0`)."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


class ClassScores(NamedTuple):
    """Per class, f64[K]; 0 where a ratio has no denominator."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    """Weight of the rows that truly are of the class."""
    present: np.ndarray
    """bool[K]: the class occurs among labels or predictions; macro means are over these, as in scikit-learn."""


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Return precision, recall, F1 and support of each class from a confusion matrix (rows = truth)."""
    hits, support, called = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        precision=ratio(hits, called),
        recall=ratio(hits, support),
        f1=ratio(2.0 * hits, support + called),
        support=support,
        present=(support + called) > 0,
    )


def averaged_scores(confusion: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, MCC and the macro, micro and weighted precision, recall and F1."""
    scores = class_scores(confusion)
    accuracy = float(np.trace(confusion) / confusion.sum())
    result = {
        "accuracy": accuracy,
        "balanced_accuracy": float(scores.recall[scores.support > 0].mean()),
        "mcc": matthews_correlation(confusion),
    }
    for name in ("precision", "recall", "f1"):
        values = getattr(scores, name)
        result[f"{name}_macro"] = float(values[scores.present].mean())
        result[f"{name}_micro"] = accuracy  # one label a row: every false positive is someone's false negative
        result[f"{name}_weighted"] = float(np.average(values, weights=scores.support))
    return result


def matthews_correlation(confusion: np.ndarray) -> float:
    """Return the K-class Matthews correlation (Gorodkin 2004); 0 where labels or predictions are constant."""
    total, support, called = confusion.sum(), confusion.sum(axis=1), confusion.sum(axis=0)
    if min(np.count_nonzero(support), np.count_nonzero(called)) < 2:
        return 0.0
    spread = (total**2 - called @ called) * (total**2 - support @ support)
    return float((np.trace(confusion) * total - support @ called) / np.sqrt(spread))


def ranking_scores(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Return (ROC-AUC, average precision) of `scores f64[N]` against `positive bool[N]`, in O(N log N).

    Tied scores count once, as one threshold. ROC-AUC is NaN without a positive and a negative row; average precision is
    NaN without a positive row.
    """
    order = np.argsort(scores)[::-1]
    ordered, hit = scores[order], positive[order]
    last_of_tie = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    if weight is None:
        true_positives = np.cumsum(hit)[last_of_tie].astype(np.float64)
        called = last_of_tie + 1.0
    else:
        weight = weight[order]
        true_positives = np.cumsum(hit * weight)[last_of_tie]
        called = true_positives + np.cumsum(~hit * weight)[last_of_tie]
    positives, negatives = true_positives[-1], (called - true_positives)[-1]
    if positives <= 0:
        return np.nan, np.nan
    gained = np.diff(true_positives, prepend=0.0)
    # Not `@`: BLAS wakes its threads for a dot product this long, at ten times the cost on busy cores.
    average_precision = float((gained * (true_positives / called)).sum() / positives)
    if negatives <= 0:
        return np.nan, average_precision
    false_gained = np.diff(called - true_positives, prepend=0.0)
    area = (false_gained * (true_positives - 0.5 * gained)).sum()  # trapezoids: a tie counts half
    return float(area / (positives * negatives)), average_precision


def one_vs_rest_scores(
    probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ROC-AUC f64[K], average precision f64[K]) of each class against the rest; NaN as in `ranking_scores`."""
    columns = np.ascontiguousarray(probabilities.T)
    found = [ranking_scores(column, labels == k, weight) for k, column in enumerate(columns)]
    areas, precisions = zip(*found, strict=True)
    return np.array(areas), np.array(precisions)


def mean_defined(values: np.ndarray) -> float:
    """Return the mean of what is not NaN, or NaN when nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def top_k_hits(probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return `bool[N]`: the true class is among the k most probable; of tied classes the later ones come first."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    later = np.arange(probabilities.shape[1])[None, :] > labels[:, None]
    return ((probabilities > own) | ((probabilities == own) & later)).sum(axis=1) < k


def log_loss_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return `f64[N]`: minus the log probability of the true class, clipped to [eps, 1 - eps] with f64's eps."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    eps = np.finfo(np.float64).eps
    return -np.log(np.clip(own, eps, 1.0 - eps))


def brier_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return `f64[N]`: squared error summed over classes, in [0, 2]; halved for two classes, in [0, 1]."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    rows = np.einsum("nk,nk->n", probabilities, probabilities) - 2.0 * own + 1.0
    return rows * 0.5 if probabilities.shape[1] == 2 else rows


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None, *, bins: int = ECE_BINS
) -> float:
    """Return the weighted mean of |accuracy - confidence| over equal-width bins `(i/bins, (i+1)/bins]` of confidence.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    gap = np.bincount(_bin_of(confidence, bins), weights=weight * (correct - confidence), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def calibration_error_by_chance(
    confidence: np.ndarray, weight: np.ndarray | None = None, *, bins: int = ECE_BINS
) -> float:
    """Return the expected calibration error that as many rows show if every confidence is exact.

    The error is a mean of absolute values, so chance adds to it: 0.03 with 1,300 rows of middling confidence. In a bin
    with as many rows as weights are worth (Kish 1965: the sum squared over the sum of squares), all as sure as their
    mean, it is the mean deviation of a binomial (de Moivre 1730; Diaconis & Zabell 1991, equation 1.1).
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    which = _bin_of(confidence, bins)
    whole, squares, sure = (
        np.bincount(which, weights=values, minlength=bins) for values in (weight, weight**2, weight * confidence)
    )
    found = np.flatnonzero(whole > 0)
    each = [_mean_deviation(max(1, round(whole[i] ** 2 / squares[i])), sure[i] / whole[i]) for i in found]
    return float((whole[found] * np.array(each)).sum() / whole.sum())


def _mean_deviation(n: int, p: float) -> float:
    """Return the mean of `|k / n - p|` where k of n happen, each with probability p."""
    if not 0.0 < p < 1.0:
        return 0.0
    k = min(math.floor(n * p) + 1, n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return 2.0 * k / n * math.exp(ways + k * math.log(p) + (n - k + 1) * math.log1p(-p))


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    which = np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence, side="left") - 1
    return np.clip(which, 0, bins - 1)


def reliability_curve(
    confidence: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None, *, bins: int = ECE_BINS
) -> list[dict[str, float]]:
    """Return, for each bin of the calibration error that has rows: low, high, confidence, accuracy (means) and rows.

    `rows` is their weight. The mean of |accuracy - confidence| over rows is the calibration error.
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    which = _bin_of(confidence, bins)
    rows, sure, right = (
        np.bincount(which, weights=weight * values, minlength=bins)
        for values in (np.ones(len(confidence)), confidence, correct)
    )
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "confidence": float(sure[i] / rows[i]),
            "accuracy": float(right[i] / rows[i]),
            "rows": float(rows[i]),
        }
        for i in np.flatnonzero(rows > 0).tolist()
    ]
