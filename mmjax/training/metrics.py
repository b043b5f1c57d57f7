"""Every number that is reported, finished on the host in NumPy f64 from collected scores.

Equal to scikit-learn's defaults. NaN means undefined: no rows, a score that is not finite, or a ranking of one class.
"""

import re
from typing import Literal, assert_never

import numpy as np

from mmjax.config import CLASSIFICATION_METRICS, METRIC_NAMES, MULTILABEL_METRICS, REGRESSION_METRICS
from mmjax.errors import ConfigError, did_you_mean
from mmjax.schema import Target
from mmjax.training.calibration import best_temperature, log_of, tempered
from mmjax.training.classification_metrics import (
    averaged_scores,
    brier_rows,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    log_loss_rows,
    mean_defined,
    one_vs_rest_scores,
    ranking_scores,
    top_k_hits,
)
from mmjax.training.matrix_scaling import with_offsets

__all__ = [
    "classification_metrics",
    "confusion_matrix",
    "metric_direction",
    "metric_names",
    "per_class_metrics",
    "regression_metrics",
]

Direction = Literal["max", "min"]

LOWER_IS_BETTER = frozenset(
    {"loss", "log_loss", "refined_log_loss", "selection_loss", "brier", "ece", "hamming_loss", "rmse", "mae", "mape"}
)


def metric_direction(name: str) -> Direction:
    """Return "max" or "min" for a metric, with or without `val_`, `train_` or `test_`; ConfigError for another name.

    >>> metric_direction("val_log_loss"), metric_direction("train_f1")
    ('min', 'max')
    """
    bare = re.sub("^(val|train|test)_", "", name)
    if bare not in METRIC_NAMES:
        hint = did_you_mean(bare, METRIC_NAMES)
        raise ConfigError(f"metric '{name}': expected val_X or train_X with X of {', '.join(METRIC_NAMES)}{hint}")
    return "min" if bare in LOWER_IS_BETTER else "max"


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    positive_index: int = 1,
    predictions: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the metrics of `probabilities f64[N, K]` against `labels i64[N]` by name.

    The predicted class is that of `predictions i64[N]`, else the most probable, the first of tied ones; `ece` looks at
    the most probable one always. `precision`, `recall` and `f1` are of the positive
    class and only there for two classes; `top_3_accuracy` and `top_5_accuracy` only for more than 3 and 5 classes.
    `refined_log_loss` is the log loss at the temperature that suits these rows best: what calibration cannot mend
    (Berta et al. 2025, arXiv 2501.19195); that temperature is found with smoothed labels, so of few rows it may be
    slightly above `log_loss`. `selection_loss` adds to it the share of rows whose most probable class is wrong; of
    three classes or more both are of `matrix_scaling.with_offsets`.
    For more than two classes `roc_auc` and `pr_auc` are means over classes, each
    against the rest, of those where they are defined, and `brier` sums over classes, in [0, 2]. Rows of weight 0 change
    nothing.
    """
    if weight is not None:
        used = weight > 0
        probabilities, labels, weight = probabilities[used], labels[used], weight[used]
        predictions = None if predictions is None else predictions[used]
    names = _classification_names(probabilities.shape[1])
    if not len(labels) or not np.isfinite(probabilities).all():
        return dict.fromkeys(names, np.nan)
    most_probable = probabilities.argmax(axis=1)
    called = most_probable if predictions is None else predictions
    confusion = confusion_matrix(called, labels, probabilities.shape[1], weight)
    found = (
        averaged_scores(confusion)
        | _top_k(probabilities, labels, weight)
        | _positive_class(confusion, positive_index)
        | _ranking(probabilities, labels, positive_index, weight)
        | _probability_scores(probabilities, labels, most_probable, weight)
    )
    return {name: found[name] for name in names}


def metric_names(target: Target) -> tuple[str, ...]:
    """Return the metrics there are of a target; `loss` is the first.

    >>> metric_names(Target(column="price", task="regression"))
    ('loss', 'rmse', 'mae', 'r2', 'mape')
    """
    match target.task:
        case "classification":
            return ("loss", *_classification_names(len(target.classes)))
        case "regression":
            return REGRESSION_METRICS
        case "multilabel":
            return MULTILABEL_METRICS
        case _:
            assert_never(target.task)


def _classification_names(k: int) -> list[str]:
    """Return the names of the metrics for k classes, in the order of `config.CLASSIFICATION_METRICS`."""
    left_out = {"loss", *(f"top_{top}_accuracy" for top in (3, 5) if k <= top)}
    left_out |= {"precision", "recall", "f1"} if k != 2 else set()
    return [name for name in CLASSIFICATION_METRICS if name not in left_out]


def _mean(rows: np.ndarray, weight: np.ndarray | None) -> float:
    return float(np.average(rows, weights=weight))


def _top_k(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    tops = [top for top in (3, 5) if probabilities.shape[1] > top]
    return {f"top_{top}_accuracy": _mean(top_k_hits(probabilities, labels, top), weight) for top in tops}


def _positive_class(confusion: np.ndarray, positive_index: int) -> dict[str, float]:
    if len(confusion) != 2:
        return {}
    scores = class_scores(confusion)
    return {name: float(getattr(scores, name)[positive_index]) for name in ("precision", "recall", "f1")}


def _ranking(
    probabilities: np.ndarray, labels: np.ndarray, positive_index: int, weight: np.ndarray | None
) -> dict[str, float]:
    if probabilities.shape[1] == 2:
        roc_auc, pr_auc = ranking_scores(probabilities[:, positive_index], labels == positive_index, weight)
    else:
        roc_auc, pr_auc = (mean_defined(each) for each in one_vs_rest_scores(probabilities, labels, weight))
    return {"roc_auc": roc_auc, "pr_auc": pr_auc}


def _probability_scores(
    probabilities: np.ndarray, labels: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None
) -> dict[str, float]:
    confidence = probabilities.max(axis=1)
    temperature = best_temperature(log_of(probabilities), labels, weight)
    refined = tempered(probabilities, temperature)
    selecting = with_offsets(refined, labels, weight)
    wrong = (predictions if probabilities.shape[1] == 2 else selecting.argmax(axis=1)) != labels
    return {
        "log_loss": _mean(log_loss_rows(probabilities, labels), weight),
        "refined_log_loss": _mean(log_loss_rows(refined, labels), weight),
        "selection_loss": _mean(log_loss_rows(selecting, labels) + wrong, weight),
        "brier": _mean(brier_rows(probabilities, labels), weight),
        "ece": expected_calibration_error(confidence, predictions == labels, weight),
    }


def per_class_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    weight: np.ndarray | None = None,
    *,
    predictions: np.ndarray | None = None,
) -> list[dict[str, str | float]]:
    """Return for each class, in order: class, precision, recall, f1, support (weight of its rows) and roc_auc.

    Predicted classes are as in `classification_metrics`. `roc_auc` is of the class against the rest, NaN where the
    class is absent or alone; all are NaN where a probability is not finite.
    """
    predictions = probabilities.argmax(axis=1) if predictions is None else predictions
    if weight is not None:
        used = weight > 0
        probabilities, labels, predictions, weight = probabilities[used], labels[used], predictions[used], weight[used]
    scores = class_scores(confusion_matrix(predictions, labels, len(classes), weight))
    columns = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    columns["roc_auc"] = np.full(len(classes), np.nan)
    if not np.isfinite(probabilities).all():
        columns = {name: np.full(len(classes), np.nan) for name in columns}
    elif len(labels):
        columns["roc_auc"], _ = one_vs_rest_scores(probabilities, labels, weight)
    columns["support"] = scores.support
    return [
        {"class": name} | {column: float(values[i]) for column, values in columns.items()}
        for i, name in enumerate(classes)
    ]


def regression_metrics(
    predictions: np.ndarray, targets: np.ndarray, *, weight: np.ndarray | None = None
) -> dict[str, float]:
    """Return rmse, mae, r2 and mape of `predictions f64[N, T]` against `targets f64[N, T]`, each a mean over T.

    As scikit-learn: mape is a fraction (not percent) of max(|target|, f64 eps); r2 of a constant target is 1 where it
    is met exactly, else 0, and NaN for fewer than two rows. Rows of weight 0 change nothing.
    """
    weight = np.ones(len(targets)) if weight is None else weight
    used = weight > 0
    predictions, targets, weight = predictions[used], targets[used], weight[used]
    if not len(targets) or not np.isfinite(predictions).all():
        return dict.fromkeys(("rmse", "mae", "r2", "mape"), np.nan)
    share = weight[:, None] / weight.sum()
    error = predictions - targets
    squared = (share * error**2).sum(axis=0)
    absolute = np.abs(error)
    return {
        "rmse": float(np.sqrt(squared).mean()),
        "mae": float((share * absolute).sum(axis=0).mean()),
        "r2": _r2(squared, targets, share),
        "mape": float((share * absolute / np.maximum(np.abs(targets), np.finfo(np.float64).eps)).sum(axis=0).mean()),
    }


def _r2(squared: np.ndarray, targets: np.ndarray, share: np.ndarray) -> float:
    if len(targets) < 2:
        return np.nan
    spread = (share * (targets - (share * targets).sum(axis=0)) ** 2).sum(axis=0)
    varies = np.ptp(targets, axis=0) > 0  # not `spread > 0`: the mean of a constant may be off by an ulp
    explained = 1.0 - np.divide(squared, spread, out=(squared > 0).astype(np.float64), where=varies)
    return float(explained.mean())
