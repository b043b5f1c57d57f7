"""Every metric of a model on labelled rows: the numbers of reports, of `mmjax evaluate` and of notebooks."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mmjax.analysis.trust import Figures, trust_figures
from mmjax.artifact.answers import Answers, row_ids
from mmjax.data.findings import leaked_rows
from mmjax.data.pipeline import take
from mmjax.data.prepared import Prepared
from mmjax.schema import Batch, Schema
from mmjax.training.label_metrics import per_label_metrics
from mmjax.training.metrics import confusion_matrix, per_class_metrics
from mmjax.training.scoring import Scores, metrics_of


class Evaluation(NamedTuple):
    """What a model is worth on some rows."""

    rows: int
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    """One dict a class: class, precision, recall, f1, support; of labels also its threshold; empty for regression."""
    confusion: list[list[float]]
    """[K][K], rows are the truth; empty for regression and labels."""
    trust: Figures
    """What `trust_figures` gives: calibration, threshold, coverage, abstaining."""
    zero_targets: int = 0
    """Rows that weigh something with a target of 0, which makes mape meaningless; 0 for classes and labels."""


class Leak(NamedTuple):
    """What the test rows say that are no copies of training rows."""

    rows: int
    """Test rows that are copies of training rows."""
    of: int
    """Test rows in all."""
    metrics: dict[str, float]
    """On the other test rows; empty where there is none."""


def leak_of(prepared: Prepared, scores: Scores, batch: Batch) -> Leak:
    """Return the Leak in the Scores of all test rows and their labels (and weights), as far as the audit tells."""
    test = prepared.split.test
    kept = np.flatnonzero(~np.isin(test, leaked_rows(prepared.findings)))
    others = scores.map(lambda array: array[kept])
    metrics = metrics_of(prepared.schema, others, take(batch, kept)) if len(kept) else {}
    return Leak(len(test) - len(kept), len(test), metrics)


def evaluate_scores(
    schema: Schema,
    scores: Scores,
    batch: Batch,
    *,
    state: Any = MappingProxyType({}),
    before: np.ndarray | None = None,
    levels: Sequence[float] = (),
) -> Evaluation:
    """Return the Evaluation of Scores against the labels (and weights) of `batch`.

    `state` is that of the Output; `before` are probabilities f32[N, K] without the temperature, to compare with;
    `levels` are those of the quantiles, where the Scores have them.
    """
    trust = trust_figures(schema, scores, batch, state=state, before=before, levels=levels)
    metrics = metrics_of(schema, scores, batch)
    rows = len(batch["label"])
    if scores.probabilities is None:
        return Evaluation(rows, metrics, [], [], trust, _zero_targets(schema, batch))
    labels = np.asarray(batch["label"], np.int64)
    weight = np.asarray(batch["weight"], np.float64) if "weight" in batch else None
    probabilities = scores.probabilities.astype(np.float64)
    classes = schema.target.classes
    if schema.target.labels:
        thresholds = np.asarray(state.get("threshold", np.full(len(classes), 0.5)))
        per_label = per_label_metrics(
            probabilities, labels, classes, predictions=scores.prediction, thresholds=thresholds, weight=weight
        )
        return Evaluation(rows, metrics, per_label, [], trust)
    called = scores.prediction.astype(np.int64)
    confusion = confusion_matrix(called, labels, len(classes), weight=weight)
    per_class = per_class_metrics(probabilities, labels, classes, weight=weight, predictions=called)
    return Evaluation(rows, metrics, per_class, confusion.tolist(), trust)


def _zero_targets(schema: Schema, batch: Batch) -> int:
    offset, label = schema.target.offset, np.asarray(batch["label"])
    rounding = float(np.spacing(np.float32(abs(offset)))) if offset else 0.0  # a label has lost the offset in f32
    zero = (np.abs(label + np.float64(offset)) <= rounding).any(axis=1)
    return int((zero & (np.asarray(batch["weight"]) > 0) if "weight" in batch else zero).sum())


def answers_of_scores(schema: Schema, scores: Scores, batch: Batch, names: np.ndarray) -> Answers:
    """Return the Answers in Scores of rows called `names`, beside the labels (and weights) of `batch`."""
    weight = np.asarray(batch["weight"], np.float64) if "weight" in batch else None
    rows = row_ids(names)
    if scores.probabilities is None:
        offset = np.float64(schema.target.offset)
        return Answers(rows, batch["label"] + offset, scores.prediction + offset, None, weight, len(names))
    label, prediction = (np.asarray(values, np.int64) for values in (batch["label"], scores.prediction))
    return Answers(rows, label, prediction, scores.probabilities, weight, len(names))
