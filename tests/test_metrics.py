"""Oracles: every metric against scikit-learn, with ties, absent classes and weights; laws: weight 0 changes nothing."""

import time
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import CLASSIFICATION_METRICS, METRIC_NAMES, REGRESSION_METRICS
from mmjax.errors import ConfigError
from mmjax.training.calibration import best_temperature, log_of, tempered
from mmjax.training.classification_metrics import (
    ECE_BINS,
    calibration_error_by_chance,
    expected_calibration_error,
)
from mmjax.training.matrix_scaling import with_offsets
from mmjax.training.metrics import (
    classification_metrics,
    confusion_matrix,
    metric_direction,
    per_class_metrics,
    regression_metrics,
)

TOLERANCE = {"abs": 1e-6, "nan_ok": True}
cases = settings(max_examples=40, deadline=None)


@st.composite
def scored_rows(draw, ks=(2, 3, 4, 7), every_class=False):
    """Probabilities with many ties, labels that may miss classes, weights or none."""
    k = draw(st.sampled_from(ks))
    n = draw(st.integers(max(k, 2), 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = random.integers(0, draw(st.sampled_from([3, 1000])), (n, k)) + 1.0
    labels = random.integers(0, draw(st.integers(1, k)), n)
    if every_class:
        labels[:k] = np.arange(k)
    weight = random.uniform(0.1, 3.0, n) if draw(st.booleans()) else None
    return counts / counts.sum(axis=1, keepdims=True), labels, weight


def reference(probabilities, labels, weight, positive):
    """What scikit-learn says, warnings about undefined ratios aside."""
    k = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    every = list(range(k))
    given_weight = {"sample_weight": weight}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "accuracy": sk.accuracy_score(labels, predictions, **given_weight),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions, **given_weight),
            "mcc": sk.matthews_corrcoef(labels, predictions, **given_weight),
            "log_loss": sk.log_loss(labels, probabilities, labels=every, **given_weight),
            "brier": sk.brier_score_loss(labels, probabilities, labels=every, **given_weight),
        }
        for average in ("macro", "micro", "weighted"):
            scores = sk.precision_recall_fscore_support(labels, predictions, average=average, **given_weight)
            found |= {
                f"{name}_{average}": value for name, value in zip(("precision", "recall", "f1"), scores, strict=False)
            }
        for top in (3, 5):
            if k > top:
                found[f"top_{top}_accuracy"] = sk.top_k_accuracy_score(
                    labels, probabilities, k=top, labels=every, **given_weight
                )
        if k == 2:
            hit = labels == positive
            scores = sk.precision_recall_fscore_support(hit, predictions == positive, average="binary", **given_weight)
            found |= dict(zip(("precision", "recall", "f1"), scores, strict=False))
            found["roc_auc"] = sk.roc_auc_score(hit, probabilities[:, positive], **given_weight)
            found["pr_auc"] = (
                sk.average_precision_score(hit, probabilities[:, positive], **given_weight) if hit.any() else np.nan
            )
    return found


def plain_ece(probabilities, labels, weight):
    weight = np.ones(len(labels)) if weight is None else weight
    total = 0.0
    for i in range(ECE_BINS):
        low, high = i / ECE_BINS, (i + 1) / ECE_BINS
        rows = [n for n, p in enumerate(probabilities.max(axis=1)) if low < p <= high]
        if rows:
            accuracy = np.average(probabilities[rows].argmax(axis=1) == labels[rows], weights=weight[rows])
            confidence = np.average(probabilities[rows].max(axis=1), weights=weight[rows])
            total += weight[rows].sum() / weight.sum() * abs(accuracy - confidence)
    return total


@cases
@given(scored_rows(), st.integers(0, 1))
def test_classification_equals_scikit_learn(rows, positive):
    probabilities, labels, weight = rows
    found = classification_metrics(probabilities, labels, positive_index=positive, weight=weight)
    expected = reference(probabilities, labels, weight, positive)
    assert {name: found[name] for name in expected} == pytest.approx(expected, **TOLERANCE)
    assert found["ece"] == pytest.approx(plain_ece(probabilities, labels, weight), **TOLERANCE)
    assert set(found) == set(expected) | {"ece", "roc_auc", "pr_auc", "refined_log_loss", "selection_loss"}
    refined = found["refined_log_loss"]
    if probabilities.shape[1] > 2:
        temperature = best_temperature(log_of(probabilities), labels, weight)
        probabilities = with_offsets(tempered(probabilities, temperature), labels, weight)
        refined = sk.log_loss(labels, probabilities, labels=list(range(probabilities.shape[1])), sample_weight=weight)
    wrong = np.average(probabilities.argmax(axis=1) != labels, weights=weight)
    assert found["selection_loss"] == pytest.approx(refined + wrong, **TOLERANCE)


@cases
@given(scored_rows(ks=(3, 4, 7), every_class=True))
def test_multiclass_ranking_equals_scikit_learn(rows):
    probabilities, labels, weight = rows
    found = classification_metrics(probabilities, labels, weight=weight)
    area = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro", sample_weight=weight)
    precision = sk.average_precision_score(labels, probabilities, average="macro", sample_weight=weight)
    assert (found["roc_auc"], found["pr_auc"]) == pytest.approx((area, precision), **TOLERANCE)


@cases
@given(scored_rows())
def test_per_class_and_confusion_equal_scikit_learn(rows):
    probabilities, labels, weight = rows
    k = probabilities.shape[1]
    classes = tuple("abcdefg"[:k])
    predictions = probabilities.argmax(axis=1)
    found = per_class_metrics(probabilities, labels, classes, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.precision_recall_fscore_support(labels, predictions, labels=range(k), sample_weight=weight)
        areas = [sk.roc_auc_score(labels == i, probabilities[:, i], sample_weight=weight) for i in range(k)]
        matrix = sk.confusion_matrix(labels, predictions, labels=range(k), sample_weight=weight)
    assert [row["class"] for row in found] == list(classes)
    for name, column in zip(("precision", "recall", "f1", "support", "roc_auc"), (*expected, areas), strict=True):
        assert [row[name] for row in found] == pytest.approx(np.array(column), **TOLERANCE)
    np.testing.assert_allclose(confusion_matrix(predictions, labels, k, weight), matrix, atol=1e-9)


@cases
@given(scored_rows(), st.integers(1, 5))
def test_rows_of_weight_zero_change_nothing(rows, extra):
    probabilities, labels, weight = rows
    weight = np.ones(len(labels)) if weight is None else weight
    padded = (
        np.concatenate([probabilities, np.full((extra, probabilities.shape[1]), np.nan)]),
        np.concatenate([labels, np.full(extra, probabilities.shape[1] - 1)]),
    )
    padded_weight = np.concatenate([weight, np.zeros(extra)])
    classes = tuple("abcdefg"[: probabilities.shape[1]])
    plain = classification_metrics(probabilities, labels, weight=weight)
    assert classification_metrics(*padded, weight=padded_weight) == pytest.approx(plain, **TOLERANCE)
    for row, other in zip(
        per_class_metrics(probabilities, labels, classes, weight),
        per_class_metrics(*padded, classes, padded_weight),
        strict=True,
    ):
        assert other == pytest.approx(row, **TOLERANCE)


def test_one_class_alone_leaves_only_the_ranking_undefined():
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7]])
    negatives = classification_metrics(probabilities, np.zeros(2, np.int64))
    assert np.isnan([negatives["roc_auc"], negatives["pr_auc"]]).all()
    assert {name for name, value in negatives.items() if np.isnan(value)} == {"roc_auc", "pr_auc"}
    positives = classification_metrics(probabilities, np.ones(2, np.int64))
    assert np.isnan(positives["roc_auc"])
    assert positives["pr_auc"] == 1.0


def test_absent_classes_are_left_out_of_the_mean_over_rankings():
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(4), 50), random.integers(0, 3, 50)
    found = classification_metrics(probabilities, labels)
    areas = [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)]
    precisions = [sk.average_precision_score(labels == k, probabilities[:, k]) for k in range(3)]
    assert (found["roc_auc"], found["pr_auc"]) == pytest.approx((np.mean(areas), np.mean(precisions)), **TOLERANCE)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_no_rows_and_not_finite_scores_are_nan_everywhere(k):
    empty = classification_metrics(np.zeros((0, k)), np.zeros(0, np.int64))
    diverged = classification_metrics(np.full((4, k), np.nan), np.zeros(4, np.int64))
    usual = classification_metrics(np.full((4, k), 1 / k), np.zeros(4, np.int64))
    assert list(empty) == list(diverged) == list(usual)
    assert np.isnan(list(empty.values())).all()
    assert np.isnan(list(diverged.values())).all()
    rows = per_class_metrics(np.full((4, k), np.nan), np.zeros(4, np.int64), tuple("abcdef"[:k]))
    assert np.isnan([row["f1"] for row in rows]).all()
    rows = per_class_metrics(np.zeros((0, k)), np.zeros(0, np.int64), tuple("abcdef"[:k]))
    assert [row["support"] for row in rows] == [0.0] * k


def r2_reference(predictions, targets, weight):
    """scikit-learn's, but 1 or 0 for a constant target, where rounding misleads it."""
    found = sk.r2_score(targets, predictions, sample_weight=weight, multioutput="raw_values")
    exact = np.all(targets == predictions, axis=0)
    return np.where(np.ptp(targets, axis=0) > 0, found, exact).mean()


@cases
@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_regression_equals_scikit_learn(n, t, seed, weighted, constant):
    random = np.random.default_rng(seed)
    targets = np.full((n, t), 2.5) if constant else random.normal(3.0, 2.0, (n, t)).round(1)
    predictions = targets + random.normal(0.0, 1.0, (n, t)).round(1)
    weight = random.uniform(0.1, 3.0, n) if weighted else None
    expected = {
        "rmse": sk.root_mean_squared_error(targets, predictions, sample_weight=weight),
        "mae": sk.mean_absolute_error(targets, predictions, sample_weight=weight),
        "r2": r2_reference(predictions, targets, weight),
        "mape": sk.mean_absolute_percentage_error(targets, predictions, sample_weight=weight),
    }
    found = regression_metrics(predictions, targets, weight=weight)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert tuple(found) == REGRESSION_METRICS[1:]


def test_regression_edges():
    target = np.full((3, 1), 5.0)
    assert regression_metrics(target, target)["r2"] == 1.0
    assert regression_metrics(target + 1, target)["r2"] == 0.0
    assert np.isnan(regression_metrics(target[:1], target[:1])["r2"])
    assert np.isnan(list(regression_metrics(target[:0], target[:0]).values())).all()
    assert np.isnan(list(regression_metrics(target * np.inf, target).values())).all()
    padded = regression_metrics(
        np.append(target, [[np.nan]], 0), np.append(target, [[0]], 0), weight=np.array([1, 1, 1, 0])
    )
    assert padded["rmse"] == 0.0


def test_direction_of_every_metric():
    best = {name for name in METRIC_NAMES if metric_direction(f"val_{name}") == "min"}
    log_losses = {"loss", "log_loss", "refined_log_loss", "selection_loss"}
    assert best == log_losses | {"brier", "ece", "hamming_loss", "rmse", "mae", "mape"}
    assert metric_direction("roc_auc") == metric_direction("train_roc_auc") == "max"
    assert set(CLASSIFICATION_METRICS) >= set(classification_metrics(np.full((2, 6), 1 / 6), np.zeros(2, np.int64)))


def test_an_unknown_metric_is_refused_with_a_hint():
    with pytest.raises(
        ConfigError, match=r"metric 'val_acuracy': expected val_X .*log_loss.*did you mean 'accuracy'\?"
    ):
        metric_direction("val_acuracy")


@pytest.mark.parametrize(("n", "k", "most"), [(12_000, 10, 6.5), (10_000, 2, 7.5)])
def test_all_metrics_cost_little_more_than_one_sort(n, k, most):
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(k), n), random.integers(0, k, n)

    def yardstick():
        probabilities.argsort(axis=0), np.exp(probabilities), np.exp(probabilities)

    metrics, unit = [], []
    for _ in range(15):
        metrics.append(_cpu_seconds(lambda: classification_metrics(probabilities, labels)))
        unit.append(_cpu_seconds(yardstick))
    assert min(metrics) <= most * min(unit)  # on an AMD EPYC 5.1 of both: 25 and 4 ms


def _cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("rows", [1, 20, 300, 5_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_error_by_chance_is_that_of_labels_drawn_from_the_confidences(rows, weighted):
    random = np.random.default_rng(rows)
    confidence = 0.5 + 0.5 * random.beta(3, 2, rows)
    weight = random.integers(1, 4, rows).astype(float) if weighted else None
    drawn = [expected_calibration_error(confidence, random.random(rows) < confidence, weight) for _ in range(3_000)]
    assert calibration_error_by_chance(confidence, weight) == pytest.approx(np.mean(drawn), rel=0.05)


def test_calibration_error_by_chance_in_closed_form():
    assert calibration_error_by_chance(np.array([0.8])) == pytest.approx(2 * 0.8 * 0.2)
    assert calibration_error_by_chance(np.array([0.5, 0.5])) == pytest.approx(0.25)
    assert calibration_error_by_chance(np.ones(5)) == 0.0
