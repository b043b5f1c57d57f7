"""Intervals against closed forms and SciPy, their coverage in simulation, and pairs on the same draws."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mmjax.analysis import bootstrap
from mmjax.analysis.bootstrap import difference_intervals, intervals, larger_than_noise, metric_values, resample
from mmjax.analysis.noise import difference_noise
from mmjax.artifact.answers import Answers, row_ids, take_answers


def classified(n: int, *, k: int = 2, seed: int = 0, skill: float = 1.0, weight: np.ndarray | None = None) -> Answers:
    """Labels of the seed, and probabilities with some truth in them."""
    label = np.random.default_rng(seed).integers(0, k, n)
    logits = np.random.default_rng(seed + 1).normal(size=(n, k)) + skill * np.eye(k)[label]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return Answers(row_ids(np.arange(n)), label, probabilities.argmax(axis=1), probabilities, weight, n)


def measured(n: int, *, seed: int = 0, spread: float = 1.0) -> Answers:
    random = np.random.default_rng(seed)
    label = random.normal(1e6, 5.0, (n, 1))
    return Answers(row_ids(np.arange(n)), label, label + random.normal(0, spread, (n, 1)), None, None, n)


def test_the_spread_is_that_of_closed_forms():
    answers, numbers = classified(1000), measured(1000, spread=3.0)
    accuracy = metric_values(answers)["accuracy"]
    error = np.sqrt(accuracy * (1 - accuracy) / 1000)
    assert resample(answers)["accuracy"].deviations.std() == pytest.approx(error, rel=0.1)
    absolute = np.abs(numbers.prediction - numbers.label)
    assert resample(numbers)["mae"].deviations.std() == pytest.approx(absolute.std() / np.sqrt(1000), rel=0.1)


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc"])
def test_intervals_are_scipys(metric: str):
    answers = classified(80, skill=0.7)

    def value(rows: np.ndarray) -> float:
        return metric_values(take_answers(answers, rows))[metric]

    found = scipy.stats.bootstrap(
        (np.arange(80),), value, n_resamples=2000, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    ).confidence_interval
    width = found.high - found.low
    assert intervals(resample(answers))[metric] == pytest.approx((found.low, found.high), abs=0.12 * width)


def test_one_draw_has_the_metrics_of_its_rows():
    """To f32 rounding, ties and weights included; the draws are replayed from the seed."""
    n, random = 40, np.random.default_rng(7)
    weight = random.integers(1, 4, n).astype(np.float64)
    answers = classified(n, weight=weight)
    answers = answers._replace(probabilities=np.round(answers.probabilities, 1))
    found, centre = resample(answers, seed=5), metric_values(answers)
    numbers = measured(n)
    errors, middle = resample(numbers, seed=5), metric_values(numbers)
    drawn = np.random.default_rng(5).integers(0, n, (1000, n), np.int32)
    for i in (0, 1, 999):
        for name, value in metric_values(take_answers(answers, drawn[i])).items():
            assert found[name].deviations[i] + centre[name] == pytest.approx(value, abs=1e-5)
        for name, value in metric_values(take_answers(numbers, drawn[i])).items():
            assert errors[name].deviations[i] + middle[name] == pytest.approx(value, rel=1e-4)


def test_an_area_is_scikit_learns():
    answers = classified(60)
    assert metric_values(answers)["roc_auc"] == pytest.approx(roc_auc_score(answers.label, answers.probabilities[:, 1]))


def test_19_of_20_intervals_hold_the_truth():
    """Accuracy 0.8 and an absolute error of mean 1, over 150 simulated test sets of 200 rows."""
    held = np.zeros((150, 2))
    for i in range(150):
        random = np.random.default_rng(i)
        label = random.integers(0, 2, 200)
        called = np.where(random.random(200) < 0.8, label, 1 - label)
        answers = Answers(row_ids(label), label, called, np.eye(2, dtype=np.float32)[called] * 0.6 + 0.2, None, 200)
        low, high = intervals(resample(answers, seed=i))["accuracy"]
        held[i, 0] = low <= 0.8 <= high
        errors = random.exponential(1.0, (200, 1))
        numbers = Answers(row_ids(label), np.zeros((200, 1)), errors, None, None, 200)
        low, high = intervals(resample(numbers, seed=i))["mae"]
        held[i, 1] = low <= 1.0 <= high
    assert held.mean(axis=0) == pytest.approx(0.95, abs=0.05)  # 2.8 standard errors of 150 trials


def test_of_many_rows_some_stand_for_all(monkeypatch: pytest.MonkeyPatch):
    answers = classified(4000)
    whole = intervals(resample(answers))
    monkeypatch.setattr(bootstrap, "MOST_ROWS", 1000)
    for name, (low, high) in intervals(resample(answers)).items():
        assert high - low == pytest.approx(whole[name][1] - whole[name][0], rel=0.15)
        assert low < metric_values(answers)[name] < high


def test_pairs_see_what_others_cannot():
    better = classified(400)
    a_bit = 0.97 * better.probabilities + 0.015
    worse = better._replace(probabilities=a_bit.astype(np.float32))
    paired = difference_intervals(resample(better), resample(worse))["log_loss"]
    other = difference_intervals(resample(better), resample(worse, seed=1))["log_loss"]
    assert paired[1] - paired[0] < 0.3 * (other[1] - other[0])
    assert not larger_than_noise(other)
    assert difference_intervals(resample(better), resample(better))["log_loss"] == (0.0, 0.0)


@given(st.integers(10, 20), st.integers(2, 4), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_intervals_hold_the_value_of_any_rows(n: int, k: int, seed: int):
    answers = classified(n, k=k, seed=seed)
    assert "accuracy" in resample(answers)
    for name, (low, high) in intervals(resample(answers)).items():
        assert low - 1e-5 <= metric_values(answers)[name] <= high + 1e-5


def test_what_was_called_decides_the_accuracy():
    """Where a threshold calls what is less probable, too: in all rows, in each draw, and in the pairs."""
    plain = classified(200)
    called = plain._replace(prediction=(plain.probabilities[:, 1] >= 0.3).astype(np.int64))
    assert metric_values(called)["accuracy"] == pytest.approx((called.prediction == called.label).mean())
    assert metric_values(called)["accuracy"] != metric_values(plain)["accuracy"]
    low, high = difference_intervals(resample(plain), resample(called))["accuracy"]
    changed = (called.prediction == called.label) * 1.0 - (plain.prediction == plain.label)
    error = changed.std() / np.sqrt(200)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert (high + low) / 2 == pytest.approx(changed.mean(), abs=0.3 * error)
    assert metric_values(called)["log_loss"] == metric_values(plain)["log_loss"]


def test_a_few_rows_tell_nothing_from_noise():
    nine, others = classified(9), classified(9, seed=1)
    assert resample(nine) == {}
    assert resample(classified(12)._replace(weight=np.repeat([1.0, 0.0], [9, 3]))) == {}
    told = difference_noise(nine, others, names=("a", "b"), metrics=({}, {}))
    assert told == ({}, "cannot be told from noise: expected 10 test rows or more, got 9")


def test_what_is_undefined_has_no_interval():
    broken = classified(10)
    assert resample(broken._replace(probabilities=np.full((10, 2), np.nan, np.float32))) == {}
    assert "roc_auc" not in resample(broken._replace(label=np.ones(10, np.int64)))
    assert resample(take_answers(broken, np.arange(0))) == {}
    constant = measured(10)._replace(label=np.ones((10, 1)))
    assert set(resample(constant)) == {"rmse", "mae"}


def test_accuracy_is_of_the_class_that_is_called():
    """With a threshold it is not always the most probable one."""
    answers = classified(200)
    called = (answers.probabilities[:, 1] >= 0.9).astype(np.int64)
    found = resample(answers._replace(prediction=called))["accuracy"]
    assert found.value == np.mean(called == answers.label) != metric_values(answers)["accuracy"]
    low, high = intervals({"accuracy": found})["accuracy"]
    assert low < found.value < high
