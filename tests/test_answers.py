"""Answers to test rows: kept by the same rule in every model, and compared row by row only where they are the same."""

import numpy as np
import pytest

from mmjax.analysis.noise import difference_noise
from mmjax.artifact.answers import (
    Answers,
    answers_from_bytes,
    answers_to_bytes,
    kept_answers,
    row_ids,
    same_rows,
    take_answers,
)
from mmjax.errors import BundleError
from mmjax.training.metrics import classification_metrics
from tests.test_bootstrap import classified, measured
from tests.test_tree import same


def noise_of(a, b):
    from mmjax.analysis.bootstrap import metric_values

    metrics = tuple({} if each is None else metric_values(each) for each in (a, b))
    return difference_noise(a, b, names=("a", "b"), metrics=metrics)


@pytest.mark.parametrize("answers", [classified(9, weight=np.arange(9.0)), classified(5, k=3), measured(4)])
def test_answers_come_back_to_the_bit(answers):
    back = answers_from_bytes(answers_to_bytes(answers), "x")
    assert same(answers._replace(total=None)._asdict(), back._replace(total=None)._asdict())
    assert back.total == answers.total


def test_damaged_answers_are_named():
    whole = classified(9)
    with pytest.raises(BundleError, match=r"x/answers.npz: expected arrays of one length, got \[8, 9\]"):
        answers_from_bytes(answers_to_bytes(whole._replace(label=whole.label[:8])), "x/answers.npz")
    with pytest.raises(BundleError, match=r"x/answers.npz: not readable as arrays"):
        answers_from_bytes(b"PK", "x/answers.npz")


def test_every_model_keeps_the_same_rows_in_the_same_order():
    one, mixed = classified(100), np.random.default_rng(0).permutation(100)
    other = take_answers(classified(100, skill=2.0), mixed)
    kept = kept_answers(one, 20), kept_answers(other, 20)
    assert same_rows(*kept) == ""
    assert kept[0].total == 100
    assert kept_answers(one, 0) is None
    names = np.array(["a", "b\udcff", "a"], object)
    assert len(np.unique(row_ids(names))) == 2
    assert len(np.unique(row_ids(np.arange(-5, 10_000)))) == 10_005


def test_other_rows_labels_and_weights_are_told_apart():
    one = kept_answers(classified(100), 100)
    assert same_rows(one, one._replace(label=1 - one.label)) == "the test rows have the same names but other labels"
    assert same_rows(one, one._replace(weight=np.ones(100))) == "the test rows have other weights"
    assert "the test rows differ (100 and 60 rows; 60" in same_rows(one, kept_answers(classified(60), 60))


def test_noise_says_how_it_was_found():
    one, other = (kept_answers(classified(300, skill=skill), 300) for skill in (1.0, 3.0))
    paired = noise_of(one, other)
    assert paired.how == "intervals are of a paired bootstrap over the same 300 test rows"
    assert paired.intervals["accuracy"][0] > 0
    unpaired = noise_of(one, kept_answers(classified(200), 200))
    assert unpaired.how.startswith("the test rows differ")
    assert set(unpaired.intervals) == {"accuracy", "log_loss", "brier", "roc_auc"}
    assert noise_of(one, None) == (
        {},
        "cannot be compared row by row: no answers to test rows are kept of b",
    )
    assert noise_of(one, kept_answers(measured(300), 300)).how.startswith("cannot be compared: one predicts classes")


@pytest.mark.parametrize("n", [83, 153, 279])
def test_one_row_is_never_more_than_noise(n: int):
    """A third of the draws leave it out: 0 is in the interval to the last bit, however the metrics were rounded."""
    one = classified(n, weight=np.random.default_rng(n).uniform(0.5, 3.0, n))
    wrong = one.prediction.copy()
    wrong[np.flatnonzero(wrong == one.label)[0]] ^= 1
    both = one, one._replace(prediction=wrong)
    metrics = tuple(
        classification_metrics(each.probabilities, each.label, predictions=each.prediction, weight=each.weight)
        for each in both
    )
    low, high = difference_noise(*both, names=("a", "b"), metrics=metrics).intervals["accuracy"]
    assert low < metrics[1]["accuracy"] - metrics[0]["accuracy"] < high == 0.0


def test_kept_rows_stand_for_all():
    """A tenth of the rows gives about the interval of all, around the difference of all."""
    one, other = classified(3000), classified(3000, skill=1.3)
    metrics = tuple(map(dict, ({"accuracy": 0.7}, {"accuracy": 0.75})))
    found = [
        difference_noise(kept_answers(one, n), kept_answers(other, n), names=("a", "b"), metrics=metrics)
        for n in (3000, 300)
    ]
    (low, high), (few_low, few_high) = (each.intervals["accuracy"] for each in found)
    assert few_high - few_low == pytest.approx(high - low, rel=0.25)
    assert (few_low + few_high) / 2 == pytest.approx(0.05, abs=0.01)
    assert found[1].how == "intervals are of a paired bootstrap over the same 300 of 3,000 test rows"


def test_labels_that_lost_another_offset_are_the_same():
    label = np.random.default_rng(0).normal(1e6, 5.0, (50, 1))
    one, other = ((label - offset).astype(np.float32) + np.float64(offset) for offset in (1e6, 999_997.3))
    assert not np.array_equal(one, other)
    first, second = (Answers(row_ids(np.arange(50)), found, found, None, None, 50) for found in (one, other))
    assert same_rows(first, second) == ""
    assert "other labels" in same_rows(first, second._replace(label=other + np.eye(50, 1) * 0.01))
