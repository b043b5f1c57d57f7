"""The metrics of several yes/no labels for each row. Host, NumPy f64; equal to scikit-learn's on a label indicator.

NaN means undefined: no rows, a score that is not finite, or a ranking of a label that all rows hold, or none.
"""

from typing import Any

import numpy as np

from mmjax.config import MULTILABEL_METRICS
from mmjax.training.calibration import best_temperature, log_of, tempered
from mmjax.training.classification_metrics import (
    brier_rows,
    calibration_error_by_chance,
    expected_calibration_error,
    log_loss_rows,
    mean_defined,
    ranking_scores,
    ratio,
    reliability_curve,
)


def label_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    predictions: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the MULTILABEL_METRICS but `loss` of `probabilities f64[N, L]` against `labels [N, L]` of 0 and 1.

    A label is said to hold where `predictions [N, L]` say so, else where its probability is above one half.
    `subset_accuracy` is the share of rows with all labels right, `hamming_loss` the share of labels that are wrong.
    `_macro` scores are means over labels, 0 for one that has no denominator; `_micro` ones count all labels together.
    `roc_auc` and `pr_auc` are means over the labels where they are defined, `log_loss` and `brier` over all. `ece` asks
    of every label of every row for yes or no, whichever is more probable; `refined_log_loss` is the log loss at the one
    temperature that suits these rows best (arXiv 2501.19195). Rows of weight 0 change nothing.
    """
    names = MULTILABEL_METRICS[1:]
    called = probabilities > 0.5 if predictions is None else predictions > 0
    if weight is not None:
        used = weight > 0
        probabilities, labels, called, weight = probabilities[used], labels[used], called[used], weight[used]
    if not len(labels) or not np.isfinite(probabilities).all():
        return dict.fromkeys(names, np.nan)
    truth, rows = labels > 0, np.ones(len(labels)) if weight is None else weight
    wrong = (called != truth).mean(axis=1)
    areas, precisions = _rankings(probabilities, truth, weight).T
    found = {
        "subset_accuracy": float(np.average(wrong == 0, weights=rows)),
        "hamming_loss": float(np.average(wrong, weights=rows)),
        "roc_auc": mean_defined(areas),
        "pr_auc": mean_defined(precisions),
    }
    found |= _called_scores(called, truth, rows) | cell_scores(probabilities, truth, rows)
    two, cells, spread = _as_two(probabilities, truth, rows)
    # No of a yes that f32 rounded to 1 is half the step below 1: as 0 it would be surer than any sigmoid is.
    both = np.maximum(two, [[np.finfo(np.float32).epsneg / 2, 0.0]])
    refined = tempered(both, best_temperature(log_of(both), cells, spread))
    found["refined_log_loss"] = float(np.average(log_loss_rows(refined, cells), weights=spread))
    return {name: found[name] for name in names}


def cell_scores(probabilities: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Return log_loss, brier and ece over all labels `[N, L]` of all rows."""
    two, cells, spread = _as_two(probabilities, truth, weight)
    right = two.argmax(axis=1) == cells
    return {
        "log_loss": float(np.average(log_loss_rows(two, cells), weights=spread)),
        "brier": float(np.average(brier_rows(two, cells), weights=spread)),
        "ece": expected_calibration_error(two.max(axis=1), right, spread),
    }


def label_error_by_chance(probabilities: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Return the `ece` of these labels that chance alone makes, if every probability is exact."""
    two, _, spread = _as_two(probabilities, truth, weight)
    return calibration_error_by_chance(two.max(axis=1), spread)


def label_reliability(probabilities: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> list[dict[str, float]]:
    """Return the reliability curve that the `ece` of these labels is made of; `rows` of a bin counts labels."""
    two, cells, spread = _as_two(probabilities, truth, weight)
    return reliability_curve(two.max(axis=1), two.argmax(axis=1) == cells, spread)


def per_label_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    *,
    predictions: np.ndarray,
    thresholds: np.ndarray,
    weight: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return for each label: class (its name), precision, recall, f1, roc_auc, pr_auc, threshold, support, rows.

    `support` is the weight of the rows that it holds for, `rows` that of all. Rankings are NaN where undefined, all
    scores where a probability is not finite.
    """
    rows = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    used = rows > 0
    probabilities, rows, truth, called = probabilities[used], rows[used], labels[used] > 0, predictions[used] > 0
    hits, said, held = _counts(called, truth, rows)
    columns = _ratios(hits, said, held)
    columns |= dict(zip(("roc_auc", "pr_auc"), _rankings(probabilities, truth, rows).T, strict=True))
    if not np.isfinite(probabilities).all():
        columns = {name: np.full(len(names), np.nan) for name in columns}
    columns |= {"threshold": thresholds, "support": held, "rows": np.full(len(names), rows.sum())}
    return [
        {"class": name} | {column: float(values[i]) for column, values in columns.items()}
        for i, name in enumerate(names)
    ]


def _counts(called: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weight of true positives, of rows that are called and of rows that hold, each f64[L]."""
    hits, said, held = ((weight[:, None] * cells).sum(axis=0) for cells in (called & truth, called, truth))
    return hits, said, held


def _ratios(hits: np.ndarray, said: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    return {"precision": ratio(hits, said), "recall": ratio(hits, held), "f1": ratio(2.0 * hits, said + held)}


def _rankings(probabilities: np.ndarray, truth: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return f64[L, 2], ROC-AUC and average precision of each label; NaN where undefined."""
    if not len(truth) or not np.isfinite(probabilities).all():
        return np.full((truth.shape[1], 2), np.nan)
    return np.array([ranking_scores(p, t, weight) for p, t in zip(probabilities.T, truth.T, strict=True)])


def _called_scores(called: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1, macro and micro."""
    counts = _counts(called, truth, weight)
    kinds = {"macro": counts, "micro": tuple(each.sum(keepdims=True) for each in counts)}
    return {
        f"{name}_{kind}": float(values.mean())
        for kind, (hits, said, held) in kinds.items()
        for name, values in _ratios(hits, said, held).items()
    }


def _as_two(
    probabilities: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each label of each row as a row of two classes: probabilities f64[N * L, 2], classes, weights."""
    yes = probabilities.reshape(-1)
    spread = np.repeat(weight, truth.shape[1])
    return np.stack([1.0 - yes, yes], axis=1), truth.reshape(-1).astype(np.int64), spread


def best_label_temperature(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the one temperature of all labels with the least log loss of `logits [N, L]`; see `best_temperature`.

    One for all, as a label that few rows hold says little of its own.
    """
    yes = np.asarray(logits, np.float64).reshape(-1)
    spread = None if weight is None else np.repeat(weight, labels.shape[1])
    return best_temperature(np.stack([np.zeros_like(yes), yes], axis=1), labels.reshape(-1).astype(np.int64), spread)
