"""The tuned threshold: no other is better, by scikit-learn's metrics over every way to cut the rows in two."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.training.threshold import ThresholdMetric, best_threshold

METRICS = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "f1": sk.f1_score,
    "mcc": sk.matthews_corrcoef,
}


def by_threshold(name: str, positive: np.ndarray, truth: np.ndarray, weight: np.ndarray | None) -> dict[float, float]:
    """scikit-learn's metric for a threshold in each gap of the probabilities."""
    edges = np.unique(np.concatenate([[0.0], positive, [1.0]]))
    cuts = [0.0, *(0.5 * (edges[:-1] + edges[1:])), 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {t: float(METRICS[name](truth, positive >= t, sample_weight=weight)) for t in cuts}


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=12, deadline=None)
@given(st.integers(2, 16), st.booleans(), st.integers(0, 2**32 - 1))
def test_no_threshold_is_better(name: ThresholdMetric, n: int, weighted: bool, seed: int):
    random = np.random.default_rng(seed)
    positive = random.random(n).round(2).astype(np.float32)
    truth = random.random(n) < positive
    truth[:2] = True, False
    weight = random.uniform(0.1, 3.0, n) if weighted else None
    found = best_threshold(positive, truth, name, weight)
    scores = by_threshold(name, positive, truth, weight)
    mine = float(METRICS[name](truth, positive >= np.float32(found), sample_weight=weight))
    assert mine == pytest.approx(max(scores.values()), abs=1e-9)
    assert 0.0 <= found <= 1.0


def test_of_equally_good_ones_the_nearest_to_a_half():
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]) > 0, "f1") == 0.5
    wide = np.array([0.05, 0.2, 0.542, 0.9])  # its middle is 0.371, but 0.5 cuts the same rows
    assert best_threshold(wide, np.array([0, 0, 1, 1]) > 0, "f1") == 0.5
    assert best_threshold(np.array([0.1, 0.5]), np.array([0, 1]) > 0, "mcc") == 0.5
    assert best_threshold(np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1]) > 0, "accuracy") == pytest.approx(0.25)


def test_probabilities_that_only_rounding_tells_apart_are_not_cut():
    close = np.float32(0.4) + np.array([0.0, 3e-8, 6e-8, 9e-8], np.float32)
    found = best_threshold(np.append(close, [np.float32(0.9)] * 3), np.array([0, 1, 0, 1, 1, 1, 1]) > 0, "accuracy")
    assert found == 0.5
