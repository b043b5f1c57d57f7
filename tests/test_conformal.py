"""Split-conformal bounds: the quantile is the one of the theorem, and the coverage law holds by simulation."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from mmjax.schema import Target
from mmjax.training.conformal import (
    conformal_quantile,
    coverage_range,
    half_widths,
    least_probability,
    rows_needed,
    rows_worth,
)
from mmjax.training.outputs import build_output

COVERAGES = (0.5, 0.8, 0.9, 0.95)
THREE = Target(column="y", task="classification", classes=("a", "b", "c"))
NUMBER = Target(column="y", task="regression")


def within(found: np.ndarray, coverage: float, n: int) -> None:
    """The mean of a coverage by trial lies in [c, c + 1 / (n + 1)], within four standard errors."""
    error = 4.0 * found.std() / math.sqrt(len(found))
    assert coverage - error <= found.mean() <= coverage + 1.0 / (n + 1) + error


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.sampled_from(COVERAGES), st.integers(0, 2**32 - 1))
def test_the_quantile_is_the_ceil_of_n_plus_1_times_coverage_th(n: int, coverage: float, seed: int):
    scores = np.random.default_rng(seed).normal(size=n).round(1)
    place = math.ceil(round((n + 1) * coverage, 9))
    expected = np.sort(scores)[place - 1] if place <= n else math.inf
    assert conformal_quantile(scores, coverage) == expected
    assert math.isinf(expected) == (n < rows_needed(coverage))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.sampled_from(COVERAGES), st.integers(0, 2**32 - 1))
def test_weights_count_rows_and_nan_is_the_worst(n: int, coverage: float, seed: int):
    random = np.random.default_rng(seed)
    scores, weight = random.normal(size=n).round(1), random.integers(0, 4, n)
    repeated = np.repeat(scores, weight)
    assert conformal_quantile(scores, coverage, weight) == conformal_quantile(repeated, coverage)
    broken = conformal_quantile(np.append(scores, np.nan), coverage)
    assert broken == conformal_quantile(np.append(scores, np.inf), coverage)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("n", [9, 20, 99])
def test_sets_hold_the_class_as_often_as_asked(n: int, coverage: float):
    """Probabilities that are wrong on purpose: the law asks only for rows that are exchangeable."""
    output, random = build_output(THREE, "cross_entropy"), np.random.default_rng(n)
    logits = random.normal(0, 2, (20_000, 3)).astype(np.float32)
    share = np.exp(0.4 * logits).cumsum(axis=1) / np.exp(0.4 * logits).sum(axis=1, keepdims=True)
    labels = (random.random((len(logits), 1)) > share).sum(axis=1)
    probabilities = np.asarray(output.apply({}, jnp.asarray(logits)).probabilities)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    found, least = [], np.float32(0)
    for _ in range(400):
        rows = random.integers(0, len(labels), n)
        least = least_probability(probabilities[rows], labels[rows], coverage)
        found.append(np.mean(own >= least))
    within(np.array(found), coverage, n)
    sets = np.asarray(output.apply({"least_probability": least}, jnp.asarray(logits)).sets)
    np.testing.assert_array_equal(sets, probabilities >= least)


@pytest.mark.parametrize("n", [10, 50])
def test_intervals_hold_the_number_as_often_as_asked(n: int):
    output, random = build_output(NUMBER, "mse"), np.random.default_rng(n)
    outputs = random.normal(size=(20_000, 1)).astype(np.float32)
    truth = (outputs + random.standard_t(3, outputs.shape) * (0.5 + np.abs(outputs))).astype(np.float32)
    plain = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
    found, half = [], np.zeros(1, np.float32)
    for _ in range(400):
        rows = random.integers(0, len(truth), n)
        half = half_widths(outputs[rows], truth[rows], 0.9)
        found.append(np.mean(np.abs(truth - outputs) <= half))
    within(np.array(found), 0.9, n)
    intervals = np.asarray(output.apply(plain | {"half_width": half}, jnp.asarray(outputs)).intervals)
    assert intervals.shape == (20_000, 1, 2)
    np.testing.assert_allclose(intervals.mean(axis=-1), outputs, atol=1e-5)
    np.testing.assert_allclose(np.diff(intervals, axis=-1)[..., 0], np.broadcast_to(2 * half, outputs.shape), rtol=1e-4)


def test_many_equal_probabilities_do_not_hang_on_a_rounding():
    probabilities = np.full((50, 2), 0.5, np.float32)
    least = least_probability(probabilities, np.zeros(50, np.int64), 0.9)
    rounded = np.float32(0.5) * (1.0 + np.array([-1e-6, 1e-6], np.float32))
    assert (rounded >= least).all()
    half = half_widths(np.zeros((50, 1)), np.full((50, 1), 3.0), 0.9)
    assert 3.0 * (1 + 1e-6) <= half[0] < 3.001


def test_too_few_rows_bound_nothing():
    assert rows_needed(0.9) == 9
    assert least_probability(np.full((8, 2), 0.5), np.zeros(8, int), 0.9) == 0.0
    assert np.isinf(half_widths(np.zeros((8, 1)), np.ones((8, 1)), 0.9)).all()


def test_weights_that_sum_to_1_bound_as_those_of_1():
    scores = np.random.default_rng(0).normal(size=50)
    assert conformal_quantile(scores, 0.9, np.full(50, 0.02)) == conformal_quantile(scores, 0.9)
    held = np.where(np.arange(50) % 2 == 0, 0.04, 0.0)
    assert conformal_quantile(scores, 0.9, held) == conformal_quantile(scores[::2], 0.9)


@pytest.mark.parametrize(("fitted", "coverage"), [(19, 0.9), (99, 0.8), (650, 0.9)])
@pytest.mark.parametrize("tested", [1, 30, 704])
def test_the_range_of_a_coverage_is_that_of_the_beta_binomial(fitted: int, coverage: float, tested: int):
    place = math.ceil(round((fitted + 1) * coverage, 9))
    law = betabinom(tested, place, fitted + 1 - place)
    low, high = law.ppf([0.025, 0.975])
    found = coverage_range(coverage, fitted, tested)
    assert found == pytest.approx((low / tested, high / tested), abs=1e-12)


def test_coverages_of_new_rows_are_in_their_range_as_often_as_it_says():
    """Bounds from 40 rows, seen in 60 others, 4,000 times: at least 95 %, and hardly more as counts are whole."""
    random, found = np.random.default_rng(0), []
    for _ in range(4_000):
        scores = random.normal(size=100)
        found.append(np.mean(scores[40:] <= conformal_quantile(scores[:40], 0.9)))
    low, high = coverage_range(0.9, 40, 60)
    assert 0.945 < np.mean((low <= np.array(found)) & (np.array(found) <= high)) < 0.975


def test_weights_are_worth_the_rows_of_one_weight():
    assert rows_worth(None, 7) == 7
    assert rows_worth(np.array([2.0, 2.0, 0.0, 2.0]), 4) == pytest.approx(3)
    assert rows_worth(np.array([1e30, 1.0, 1.0]), 3) == pytest.approx(1)
    assert rows_worth(np.zeros(3), 3) == 0
