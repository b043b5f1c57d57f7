"""Temperature and doubt: one or two numbers that make probabilities as sure as they should be. Host, NumPy f64.

Guo et al. 2017 (arXiv 1706.04599), section 4.2: logits are divided by a temperature fitted on rows that were not
trained on. It changes no predicted class and no ranking of two classes of a row, and neither does doubt.
"""

import numpy as np

LARGEST = 100.0
"""Temperatures lie within `[1 / LARGEST, LARGEST]`."""
MOST_ROWS = 10_000
"""Rows that more than a temperature is fitted to, drawn at random of more."""
LEAST_SURE = 0.5
"""The lowest temperature that makes a mean as sure as its parts."""
_HALVINGS = 20
_STEPS, _EM_STEPS, _NEAR = 60, 50, 1e-5
_FLAT = 1e-9
"""Of a curve beside its slope: no Newton step is taken from there."""
_FARTHEST = 1e6
"""How far a logit may be below the largest: at every temperature such a class has probability 0."""


def best_temperature(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the temperature with the least log loss of `softmax(logits f64[N, K] / temperature)`.

    Labels are smoothed by one row's worth, `1 / (n + 1)`, so that a few rows that are all right do not ask for
    certainty. 1 where there are no rows, or no finite logits. `weight f64[N]` counts rows. Newton's method on the
    logarithm of the inverse, within a bracket that is halved where a step would leave it.
    """
    weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    z = np.asarray(logits, np.float64)
    if not weight.sum() > 0 or not np.isfinite(z).all():
        return 1.0
    z = np.maximum(z - z.max(axis=1, keepdims=True), -_FARTHEST)
    smooth, share = 1.0 / (weight.sum() + 1.0), weight / weight.sum()
    wanted = (1.0 - smooth) * np.take_along_axis(z, labels[:, None], axis=1)[:, 0] + smooth * z.mean(axis=1)
    squared = z * z

    def slope_and_curve(inverse: float) -> tuple[float, float]:
        """Derivatives of the mean log loss by the inverse temperature, in which it is convex."""
        e = np.exp(inverse * z)
        total = np.einsum("nk->n", e)
        mean = np.einsum("nk,nk->n", e, z) / total
        variance = np.einsum("nk,nk->n", e, squared) / total - mean * mean
        # Not by BLAS, which takes more threads to it than it is worth.
        return float(np.einsum("n,n->", share, mean - wanted)), float(np.einsum("n,n->", share, variance))

    least, most, at = np.log(1.0 / LARGEST), np.log(LARGEST), 0.0
    low, high = least - _NEAR, most + _NEAR
    for _ in range(_STEPS):
        slope, curve = slope_and_curve(float(np.exp(at)))
        low, high = (at, high) if slope < 0 else (low, at)
        change = float(np.exp(at) * curve)
        step = -slope / change if change > _FLAT * abs(slope) else -np.inf
        if high - low <= 2 * _NEAR or abs(step) < _NEAR:
            break
        newton = float(np.clip(at + step, least, most))
        at = newton if low < newton < high else 0.5 * (low + high)
    return float(np.exp(-at))


def best_doubt(
    probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Return (temperature, doubt) with the least log loss of `doubted(tempered(probabilities, temperature), doubt)`.

    A temperature that keeps single wrong labels from costing too much makes all other rows too unsure; doubt is the
    share of rows whose label has nothing to do with the network's answer. Of the two parts the answers are a mixture,
    which EM fits (Dempster, Laird & Rubin 1977). None where it gains no more than one number may by chance: a log
    likelihood of `log(n) / 2` (Schwarz 1978). `weight f64[N]` counts rows.
    """
    weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    if len(labels) > MOST_ROWS:
        some = np.sort(np.random.default_rng(0).permutation(len(labels))[:MOST_ROWS])
        probabilities, labels, weight = probabilities[some], labels[some], weight[some]
    logits, rows = log_of(probabilities), np.arange(len(labels))
    own = np.asarray(probabilities, np.float64)[rows, labels]
    if not weight.sum() > 0 or not np.isfinite(probabilities).all():
        return None
    k, temperature, doubt = logits.shape[1], 1.0, 0.05
    before = reached = float((weight * np.log(np.maximum(own, np.finfo(np.float32).tiny))).sum())
    for step in range(_EM_STEPS):
        known = (1.0 - doubt) * own
        known = known / (known + doubt / k)
        doubt = float(1.0 - np.average(known, weights=weight))
        temperature = best_temperature(logits, labels, weight * known)
        own = tempered(probabilities, temperature)[rows, labels]
        last, reached = reached, float((weight * np.log((1.0 - doubt) * own + doubt / k)).sum())
        if step and reached - last < 0.01:
            break
    return (temperature, doubt) if reached > before + 0.5 * np.log(max(weight.sum(), 1.0)) else None


def doubted(probabilities: np.ndarray, doubt: float) -> np.ndarray:
    """Return `f64[N, K]`: probabilities of which a share is spread evenly over the classes.

    >>> doubted(np.array([[1.0, 0.0]]), 0.1)
    array([[0.95, 0.05]])
    """
    return (1.0 - doubt) * np.asarray(probabilities, np.float64) + doubt / probabilities.shape[1]


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `f64[N, K]`: probabilities as they are at another temperature of the logits."""
    z = log_of(probabilities) / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def as_sure(mean: np.ndarray, each: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the temperature, `LEAST_SURE` to 1, at which `mean f64[N, K]` is as sure as what it is the mean of is.

    `each f64[M, N, K]` are the probabilities of M models. Their mean is never surer than they are, and a mean of models
    that are as sure as they should be is too unsure (Rahaman & Thiery 2021, arXiv 2007.08792, section 3; Wu & Gales
    2021, arXiv 2101.05397). How sure is the mean of the largest probabilities, for which no label is needed.
    `weight f64[N]` counts rows.

    >>> both = np.array([[[0.9, 0.1]], [[0.7, 0.3]]])
    >>> round(as_sure(both.mean(axis=0), both), 6)  # the largest are 0.8 in the mean, both ways
    1.0
    """
    weight = np.ones(len(mean)) if weight is None else np.asarray(weight, np.float64)
    if not weight.sum() > 0 or not np.isfinite(mean).all():
        return 1.0
    wanted = np.average(np.asarray(each, np.float64).max(axis=-1).mean(axis=0), weights=weight)
    low, high = LEAST_SURE, 1.0
    if np.average(np.asarray(mean, np.float64).max(axis=-1), weights=weight) >= wanted - _NEAR:
        return high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        surer = np.average(tempered(mean, middle).max(axis=-1), weights=weight) > wanted
        low, high = (middle, high) if surer else (low, middle)
    return 0.5 * (low + high)


def log_of(probabilities: np.ndarray) -> np.ndarray:
    """Return logits of probabilities, finite where a probability is 0."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float32).tiny))
