"""Temperature scaling: the temperature that made the labels is found, and nothing but the sureness changes."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from mmjax.training.calibration import (
    LARGEST,
    LEAST_SURE,
    as_sure,
    best_doubt,
    best_temperature,
    doubted,
    log_of,
    tempered,
)


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
    for largest in (740.0, 1e5, 2e154):  # curves and squares beyond f64
        assert best_temperature(np.array([[largest, 0.0]]), np.zeros(1, int)) == pytest.approx(LARGEST, rel=1e-4)
        assert best_temperature(np.array([[largest, 0.0]]), np.ones(1, int)) == pytest.approx(LARGEST, rel=1e-4)


def test_the_most_probable_class_stays() -> None:
    logits, _ = drawn(500, 4, 1.0)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for temperature in (0.1, 1.0, 10.0):
        found = tempered(p, temperature)
        np.testing.assert_array_equal(found.argmax(axis=1), p.argmax(axis=1))
        np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(tempered(p, 1.0), p, atol=1e-12)
    assert np.isfinite(log_of(np.array([[0.0, 1.0]]))).all()


def noisy(rows: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them but for a share that has nothing to do with them."""
    logits, labels = drawn(rows, 4, 1.0, seed)
    rng = np.random.default_rng(seed + 1)
    labels = np.where(rng.random(rows) < share, rng.integers(0, 4, rows), labels)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True), labels


def test_the_share_of_labels_that_mean_nothing_is_found() -> None:
    probabilities, labels = noisy(4_000, 0.2)
    found = best_doubt(probabilities, labels)
    assert found is not None
    assert found == pytest.approx((1.0, 0.2), abs=0.05)

    def cost(both: np.ndarray) -> float:
        temperature, doubt = np.exp(both[0]), 1.0 / (1.0 + np.exp(-both[1]))
        p = doubted(tempered(probabilities, temperature), doubt)
        return float(-np.log(np.take_along_axis(p, labels[:, None], axis=1)).mean())

    best = minimize(cost, [0.0, -2.0], method="Nelder-Mead")
    assert cost(np.array([np.log(found[0]), np.log(found[1] / (1 - found[1]))])) < best.fun + 2e-4


def test_without_noise_there_is_no_doubt_and_weights_count_rows() -> None:
    found = []
    for seed in range(20):
        probabilities, labels = noisy(300, 0.0, seed)
        found.append(best_doubt(tempered(probabilities, best_temperature(log_of(probabilities), labels)), labels))
    assert sum(each is not None for each in found) <= 3
    probabilities, labels = noisy(600, 0.3)
    weight = np.random.default_rng(1).integers(0, 3, 600)
    repeated = best_doubt(np.repeat(probabilities, weight, axis=0), np.repeat(labels, weight))
    assert best_doubt(probabilities, labels, weight) == pytest.approx(repeated, rel=1e-2)
    assert best_doubt(probabilities, labels, np.zeros(600)) is None
    assert best_doubt(np.full((3, 2), np.nan), np.zeros(3, int)) is None


def test_doubt_keeps_the_order_of_classes() -> None:
    probabilities, _ = noisy(300, 0.1)
    found = doubted(probabilities, 0.3)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
    assert found.min() >= 0.3 / 4


def several(rows: int, models: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities f64[M, N, 3] of models that are each as good, and labels."""
    logits, labels = drawn(rows, 3, 2.0)
    noisy = logits / 2.0 + np.random.default_rng(1).normal(0, noise, (models, rows, 3))
    return np.stack([tempered(np.exp(z - z.max(axis=1, keepdims=True)), 1.0) for z in noisy]), labels


@pytest.mark.parametrize("noise", [0.3, 0.7, 1.2])
def test_a_mean_is_made_as_sure_as_its_parts(noise: float) -> None:
    each, _ = several(2_000, 5, noise)
    weight = np.random.default_rng(2).integers(0, 3, 2_000).astype(float)
    for some in (None, weight):
        temperature = as_sure(each.mean(axis=0), each, some)
        assert LEAST_SURE < temperature < 1.0
        wanted = np.average(each.max(axis=-1).mean(axis=0), weights=some)
        found = np.average(tempered(each.mean(axis=0), temperature).max(axis=-1), weights=some)
        assert found == pytest.approx(wanted, abs=1e-5)
    assert as_sure(each.mean(axis=0), each, weight) == as_sure(
        *(np.repeat(x, weight.astype(int), axis=-2) for x in (each.mean(axis=0), each))
    )


def test_models_that_agree_leave_their_mean_as_it_is() -> None:
    each = np.repeat(several(50, 1, 1.0)[0], 4, axis=0)
    assert as_sure(each.mean(axis=0), each) == 1.0
    assert as_sure(each.mean(axis=0), each, np.zeros(50)) == 1.0


def test_the_temperature_of_one_suits_the_mean_once_it_is_as_sure() -> None:
    """What suits one model leaves the mean of five too unsure (arXiv 2007.08792); as sure, it is nearer to the best."""
    each, labels = several(20_000, 5, 1.5)
    one, mean = best_temperature(log_of(each[0]), labels), each.mean(axis=0)
    best = best_temperature(log_of(mean), labels)
    mended = one * as_sure(mean, each)
    assert best < mended < one
    losses = [log_loss(log_of(mean), labels, temperature) for temperature in (best, mended, one)]
    assert losses[1] - losses[0] < 0.5 * (losses[2] - losses[0])
