"""Sets of labels: the bound is that of conformal risk control, to the last tie, and its promise holds by simulation."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.analysis.trust import trust_figures
from mmjax.config import Training
from mmjax.errors import TrainingError
from mmjax.schema import Label, Schema, Target
from mmjax.training.conformal import ROUNDING, least_label_probability, least_probability, rows_needed
from mmjax.training.decide import Rows, decide, decision_problems
from mmjax.training.outputs import build_output
from mmjax.training.scoring import Scores

COVERAGES = ("0.5", "0.8", "0.9")
NAMES = ("a", "b", "c", "d")
LABELS = tuple(Label(column=name, negative="no", positive="yes") for name in NAMES)
TARGET = Target(column="a, b, c, d", task="multilabel", classes=NAMES, labels=LABELS)
SCHEMA = Schema(target=TARGET, columns=())
seeds = st.integers(0, 2**32 - 1)


def drawn(n: int, seed: int, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, 4] with many ties, and labels that they say too much of; a fifth of the rows hold none."""
    random = np.random.default_rng(seed)
    probabilities = random.random((n, 4)).round(decimals)
    return probabilities, (random.random((n, 4)) < 0.1 + 0.6 * probabilities).astype(np.int32)


def largest_lambda(probabilities: np.ndarray, labels: np.ndarray, coverage: str) -> float:
    """The definition, in exact fractions, tried with every probability there is; 0 where none will do."""
    kept = [(p, y > 0) for p, y in zip(probabilities, labels, strict=True) if y.any()]
    alpha, n = 1 - Fraction(coverage), len(kept)
    fitting = [0.0]
    for candidate in np.unique(probabilities):
        lost = sum((Fraction(int((y & (p < candidate)).sum()), int(y.sum())) for p, y in kept), Fraction(0))
        if n and Fraction(n, n + 1) * (lost / n) + Fraction(1, n + 1) <= alpha:
            fitting.append(float(candidate))
    return max(fitting)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 30), st.sampled_from(COVERAGES), seeds)
def test_the_bound_is_the_largest_lambda_of_conformal_risk_control(n: int, coverage: str, seed: int):
    probabilities, labels = drawn(n, seed)
    found = least_label_probability(probabilities, labels, float(coverage))
    assert found == np.float32(largest_lambda(probabilities, labels, coverage) * (1 - ROUNDING))
    if labels.any(axis=1).sum() < rows_needed(float(coverage)):
        assert found == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), seeds)
def test_more_coverage_never_takes_a_label_away(n: int, seed: int):
    probabilities, labels = drawn(n, seed, decimals=3)
    bounds = [least_label_probability(probabilities, labels, c) for c in np.linspace(0.05, 0.99, 40)]
    assert (np.diff(bounds) <= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.sampled_from(COVERAGES), seeds)
def test_with_one_label_a_row_it_is_the_bound_of_classes(n: int, coverage: str, seed: int):
    random = np.random.default_rng(seed)
    probabilities, labels = random.dirichlet(np.ones(4), n), random.integers(0, 4, n)
    weight = random.integers(0, 4, n).astype(float)
    for given_weight in (None, weight):
        found = least_label_probability(probabilities, np.eye(4)[labels], float(coverage), given_weight)
        assert found == least_probability(probabilities, labels, float(coverage), given_weight)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.sampled_from(COVERAGES), seeds)
def test_weights_count_rows_and_rows_without_a_label_do_not_count(n: int, coverage: str, seed: int):
    probabilities, labels = drawn(n, seed)
    weight, held = np.random.default_rng(seed).integers(0, 4, n), labels.any(axis=1)
    repeated = np.repeat(probabilities, weight, axis=0), np.repeat(labels, weight, axis=0)
    found = least_label_probability(probabilities, labels, float(coverage), weight)
    assert found == least_label_probability(*repeated, float(coverage))
    for some in (weight, weight / 10):
        alone = least_label_probability(probabilities[held], labels[held], float(coverage), some[held])
        assert least_label_probability(probabilities, labels, float(coverage), some) == alone


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("n", [9, 20, 99])
def test_sets_hold_the_share_of_labels_that_was_asked_for(n: int, coverage: float):
    """Over 400 fits to n rows with a label: the mean is in [c, c + 2 / (n + 1)], within four standard errors."""
    probabilities, labels = drawn(20_000, n, decimals=12)
    counts, random, found = labels.sum(axis=1), np.random.default_rng(n), []
    (some,) = np.nonzero(counts)
    assert 0.1 < 1 - len(some) / 20_000 < 0.3
    for _ in range(400):
        rows = random.choice(some, n)
        inside = (probabilities >= least_label_probability(probabilities[rows], labels[rows], coverage)) & (labels > 0)
        found.append(np.mean(inside.sum(axis=1)[some] / counts[some]))
    error = 4 * np.std(found) / math.sqrt(len(found))
    assert coverage - error <= np.mean(found) <= coverage + 2 / (n + 1) + error


def decided(members: int):
    """A state with a coverage, fitted on 200 rows with weights, and what it was fitted on."""
    random = np.random.default_rng(members)
    logits = random.normal(size=(200, members, 4)).astype(np.float32)[:, 0 if members == 1 else slice(None)]
    labels = (random.random((200, 4)) < 0.3).astype(np.int32)
    weight = random.choice([0.0, 0.5, 2.0], 200).astype(np.float32)
    output = build_output(TARGET, "bce", members=members)
    rows = Rows(Scores(logits, labels, None), {"label": labels, "weight": weight})
    training = Training(loss="bce", calibration="temperature", coverage=0.8, abstain_below=0.6)
    state, facts = decide(training, SCHEMA, output, output.fit(labels), rows)
    return output, state, facts, rows


@pytest.mark.parametrize("members", [1, 3])
def test_the_bound_is_fitted_after_calibration_applied_and_measured(members: int):
    output, state, facts, (scores, batch) = decided(members)
    found = output.apply(state, jnp.asarray(scores.outputs))
    p, sets = np.asarray(found.probabilities), np.asarray(found.sets)
    held, weight = batch["label"] > 0, batch["weight"].astype(float)
    assert state["least_probability"] == pytest.approx(least_label_probability(p, held, 0.8, weight), rel=1e-5)
    np.testing.assert_array_equal(sets, p >= state["least_probability"])
    assert found.abstained is not None
    counted = weight * held.any(axis=1)
    worth = counted.sum() ** 2 / (counted**2).sum()
    fact = {"coverage": 0.8, "labels": True, "rows": np.count_nonzero(counted), "worth": pytest.approx(worth)}
    assert facts["conformal"] == fact | {"least_probability": state["least_probability"]}
    told = trust_figures(
        SCHEMA, Scores(np.asarray(found.prediction), p, p, sets=sets), batch, state=state, before=None
    )["conformal"]  # fmt: skip
    shares = [(sum(s & y) / sum(y), w) for s, y, w in zip(sets, held, weight, strict=True) if y.any()]
    assert told["coverage"] == pytest.approx(np.average([s for s, _ in shares], weights=[w for _, w in shares]))
    assert told["coverage"] >= 0.8
    assert told["mean_size"] == pytest.approx(np.average(sets.sum(axis=1), weights=weight))
    assert told["mean_labels"] == pytest.approx(np.average(held.sum(axis=1), weights=weight))
    assert sum(told["sizes"].values()) == pytest.approx(1.0)


def test_too_few_rows_with_a_label_are_refused():
    labels = np.zeros((500, 4), np.int32)
    labels[:8, 1] = 1
    (told,) = decision_problems(Training(coverage=0.9), SCHEMA, labels)
    assert told == (
        "training.coverage: 0.9 expected at least 9 validation rows that hold a label, got 8; lower it, or raise "
        "validation_split"
    )
    labels[8, 1] = 1
    assert not decision_problems(Training(coverage=0.9), SCHEMA, labels)
    output, logits = build_output(TARGET, "bce"), np.zeros((500, 4), np.float32)
    weight = np.where(np.arange(500) < 8, 1.0, 0.0).astype(np.float32)
    rows = Rows(Scores(logits, labels, None), {"label": labels, "weight": weight})
    with pytest.raises(TrainingError, match=r"training.coverage: expected finite answers and enough weight"):
        decide(Training(loss="bce", calibration="none", coverage=0.9), SCHEMA, output, output.fit(labels), rows)
