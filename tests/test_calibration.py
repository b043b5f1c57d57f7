"""Temperature scaling: the temperature that made the labels is found, and nothing but the sureness changes."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mmjax.training.calibration import LARGEST, best_temperature, log_of, tempered


def drawn(rows: int, k: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from `softmax(logits / temperature)`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (rows, k))
    e = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    share = e.cumsum(axis=1) / e.sum(axis=1, keepdims=True)
    return logits, (rng.random((rows, 1)) > share).sum(axis=1)


def log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float, weight: np.ndarray | None = None) -> float:
    p = tempered(np.exp(logits - logits.max(axis=1, keepdims=True)), temperature)
    return float(np.average(-np.log(np.take_along_axis(p, labels[:, None], axis=1)[:, 0]), weights=weight))


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_finds_the_temperature_of_the_labels(k: int, temperature: float) -> None:
    logits, labels = drawn(20_000, k, temperature)
    assert best_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_is_better() -> None:
    logits, labels = drawn(3_000, 3, 2.0)
    weight = np.random.default_rng(1).integers(0, 4, 3_000).astype(float)
    best = minimize_scalar(lambda log_t: log_loss(logits, labels, np.exp(log_t), weight), bounds=(-3, 3)).x
    assert best_temperature(logits, labels, weight) == pytest.approx(np.exp(best), rel=0.01)


def test_weights_count_rows() -> None:
    logits, labels = drawn(200, 3, 2.0)
    weight = np.random.default_rng(1).integers(0, 3, 200)
    repeated = best_temperature(np.repeat(logits, weight, axis=0), np.repeat(labels, weight))
    assert best_temperature(logits, labels, weight) == pytest.approx(repeated, rel=1e-3)


def test_a_few_rows_that_are_all_right_ask_for_no_certainty() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    temperature = best_temperature(logits, np.array([0, 1, 0]))
    top = tempered(np.exp(logits), temperature).max(axis=1)
    assert (top < 0.95).all()
    assert (top > 0.7).all()


def test_bounds_and_what_cannot_be_fitted() -> None:
    rng = np.random.default_rng(0)
    nonsense = best_temperature(rng.normal(0, 9, (5_000, 2)), rng.integers(0, 2, 5_000))
    assert 20 < nonsense <= LARGEST
    assert best_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1.0
    assert best_temperature(np.full((3, 2), np.nan), np.zeros(3, int)) == 1.0
    assert best_temperature(np.ones((3, 2)), np.zeros(3, int), np.zeros(3)) == 1.0


def test_the_most_probable_class_stays() -> None:
    logits, _ = drawn(500, 4, 1.0)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for temperature in (0.1, 1.0, 10.0):
        found = tempered(p, temperature)
        np.testing.assert_array_equal(found.argmax(axis=1), p.argmax(axis=1))
        np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(tempered(p, 1.0), p, atol=1e-12)
    assert np.isfinite(log_of(np.array([[0.0, 1.0]]))).all()
