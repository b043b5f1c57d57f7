"""Piecewise-linear codes against a plain NumPy form, and where their bins lie."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmjax.transforms.piecewise import bin_edges, piecewise_linear

FINITE = st.floats(width=32, allow_nan=True, allow_infinity=False)


def plain_code(x: float, edges: np.ndarray) -> list[float]:
    """The code of one number, by the definition."""
    if np.isnan(x):
        return [0.0] * (len(edges) - 1)
    return [min(1.0, max(0.0, (float(x) - a) / (b - a))) for a, b in pairwise(edges)]


def test_codes_follow_the_definition() -> None:
    rng = np.random.default_rng(0)
    numeric = np.stack([rng.normal(size=200), rng.exponential(size=200)], 1).astype(np.float32)
    numeric[::7, 0] = np.nan
    transform = piecewise_linear(8)
    state = transform.fit({"numeric": numeric})
    found = np.asarray(transform.apply(state, {"numeric": numeric})["dense"])
    edges = [bin_edges(column, 8).astype(np.float64) for column in numeric.T]
    expected = [plain_code(row[0], edges[0]) + plain_code(row[1], edges[1]) for row in numeric]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_spike_leaves_bins_for_the_rest() -> None:
    column = np.concatenate([np.zeros(1000), np.arange(1, 51)]).astype(np.float32)
    assert len(bin_edges(column, 32)) > 16
    assert (np.quantile(column, np.linspace(0, 1, 33)) > 0).sum() < 4  # what quantiles of rows alone would give


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=FINITE), st.integers(2, 12))
def test_any_numbers_give_codes_between_0_and_1(numeric: np.ndarray, bins: int) -> None:
    transform = piecewise_linear(bins)
    state = transform.fit({"numeric": numeric})
    batch = transform.apply(state, {"numeric": numeric})
    assert batch["dense"].shape[1] <= bins * numeric.shape[1]
    assert np.isfinite(batch["dense"]).all()
    assert ((np.asarray(batch["dense"]) >= 0) & (np.asarray(batch["dense"]) <= 1)).all()
    compiled = jax.jit(transform.apply)(state, {"numeric": numeric})["dense"]
    np.testing.assert_allclose(compiled, batch["dense"], atol=1e-6)
    alone = transform.apply(state, {"numeric": numeric[:1]})["dense"]
    np.testing.assert_allclose(alone, np.asarray(batch["dense"])[:1], atol=1e-6)


@pytest.mark.parametrize("size", [1.8e15, 3.3e38, 1e-28])
def test_numbers_of_any_size_reach_the_ends(size: float) -> None:
    numeric = np.array([[size], [0.0], [-size]], np.float32)
    transform = piecewise_linear(4)
    code = transform.apply(transform.fit({"numeric": numeric}), {"numeric": numeric})["dense"]
    np.testing.assert_allclose(code, [[1, 1], [1, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("column", [[np.nan, np.nan], [3.0, 3.0]])
def test_a_column_that_says_nothing_has_no_bins(column: list[float]) -> None:
    assert len(bin_edges(np.array(column, np.float32), 8)) == 1
