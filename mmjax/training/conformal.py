"""Split-conformal sets and intervals: they hold the truth in a chosen share of cases, whatever the network. Host.

On rows that were not trained on, a score says how badly the model fits the truth. The truth of a new row scores no
worse than the `ceil((n + 1) * coverage)`-th of n such scores with a probability between `coverage` and
`coverage + 1 / (n + 1)`, as long as all rows are exchangeable (Lei et al. 2018, arXiv 1604.04173, theorem 2.2).

- Classes: LAC, the score is minus the probability of the true class, so the set holds every class that is at least as
  probable as the quantile (Sadinle, Lei & Wasserman 2019, arXiv 1609.00451, one threshold for all classes). Such sets
  are the smallest there are on average and need no random number, which adaptive sets (APS) do to be exact. A set may
  be empty: no class is as probable as true ones are.
- Labels, of which a row may hold several: conformal risk control of the false negative rate, the share of a row's true
  labels that its set lacks (Angelopoulos, Bates, Fisch, Lei & Schuster 2024, arXiv 2208.02814: lambda of section 1.1
  with B = 1, theorem 1, the loss of section 3.2). The set holds every label that is at least as probable as the
  largest lambda with `n / (n + 1) * mean rate + 1 / (n + 1) <= 1 - coverage`. So of a new row's true labels it holds
  `coverage` in the mean, and at most `2 / (n + 1)` more where probabilities are not tied (theorem 2). With one label a
  row this is LAC. The n rows are those that hold any label, and it is of such rows that the promise is: the others have
  no such rate. Were they to count as lacking nothing, the promise would hold too, but where nine rows of ten hold no
  label, empty sets would keep it at a coverage of 0.9.
- Numbers: the score is the absolute error, so the interval is as wide for every row (arXiv 1604.04173, algorithm 2).
  Of quantiles it is how far the truth is outside their interval, which is then widened by as much, or narrowed where
  it held too many (Romano, Patterson & Candes 2019, arXiv 1905.03222, equation 6).
"""

import math

import numpy as np

_MANY = 1e12
"""Fitted rows that leave no doubt about the coverage."""
ROUNDING = 1e-5
"""Share by which the bounds give way, as f32 is added in another order in a batch of another size."""


def rows_needed(coverage: float) -> int:
    """Return the least number of rows that bound anything at this coverage.

    >>> rows_needed(0.9), rows_needed(0.5)
    (9, 1)
    """
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


def conformal_quantile(
    scores: np.ndarray, coverage: float, weight: np.ndarray | None = None, *, new: float | None = None
) -> float:
    """Return the `ceil((n + 1) * coverage)`-th smallest of `scores f64[n]`; infinity where n is too small.

    `weight f64[n]` counts rows. The new row weighs `new`, by default as `weight_of_new` says. NaN scores are the worst.
    """
    weight = np.ones(len(scores)) if weight is None else np.asarray(weight, np.float64)
    ordered = np.argsort(scores, kind="stable")  # NaN last
    reached = np.cumsum(weight[ordered])
    wanted = coverage * (weight.sum() + (weight_of_new(weight) if new is None else new))
    place = int(np.searchsorted(reached, wanted - 1e-9 * wanted))
    found = float(scores[ordered[place]]) if place < len(scores) else math.inf
    return math.inf if math.isnan(found) else found


def coverage_range(coverage: float, fitted: float | None, tested: float) -> tuple[float, float]:
    """Return between which shares the coverage seen in `tested` new rows lies in 95 % of cases, chance alone at work.

    Given `fitted` rows that bounds were made from, the true coverage is Beta(l, n + 1 - l) with l the place of the
    quantile (Vovk 2012, arXiv 1209.2673, proposition 2a), so the number of covered rows is beta-binomial (Angelopoulos
    & Bates 2021, arXiv 2107.07511, appendix C). Without `fitted` the true coverage is `coverage`: binomial. Exact for
    rows that weigh alike and scores without ties, which only cover more, as does a mean of models where the bounds are
    of answers of one; of several labels a row it is a bit too wide,
    as shares of labels vary less than rows that are covered or not.

    >>> coverage_range(0.9, 1000, 10), coverage_range(0.9, 1000, 10_000)
    ((0.7, 1.0), (0.8798, 0.9188))
    """
    n, m = math.inf if fitted is None else max(round(fitted), 1), max(round(tested), 1)
    place = min(math.ceil((n + 1) * coverage - 1e-9), n) if fitted is not None else coverage * _MANY
    rest = (n + 1 if fitted is not None else _MANY) - place
    k = np.arange(m)
    steps = np.log((m - k) / (k + 1.0)) + np.log((k + place) / (m - k - 1.0 + rest))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    share = np.cumsum(np.exp(logs - logs.max()))
    low, high = np.searchsorted(share / share[-1], [0.025, 0.975])
    return float(low) / m, float(high) / m


def rows_worth(weight: np.ndarray | None, rows: int) -> float:
    """Return as how many rows of one weight those of `weight f64[rows]` count (Kish 1965, section 8.2)."""
    if weight is None or not weight.any():
        return float(rows) if weight is None else 0.0
    scaled = np.asarray(weight, np.float64) / np.max(weight)
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def weight_of_new(weight: np.ndarray) -> float:
    """Return what a new row weighs: 1, or the mean of `weight f64[n]` above 0 if that is less, as they may sum to 1."""
    return min(1.0, weight.sum() / np.count_nonzero(weight)) if weight.any() else 1.0


def least_probability(
    probabilities: np.ndarray, labels: np.ndarray, coverage: float, weight: np.ndarray | None = None
) -> np.float32:
    """Return the probability from which on a class of `f64[N, K]` is in the set; 0 where there are too few rows."""
    own = np.take_along_axis(np.asarray(probabilities, np.float64), labels[:, None], axis=1)[:, 0]
    return _as_least(conformal_quantile(-own, coverage, weight))


def least_label_probability(
    probabilities: np.ndarray, labels: np.ndarray, coverage: float, weight: np.ndarray | None = None
) -> np.float32:
    """Return the probability from which on a label of `f64[N, L]` is in the set; 0 where too few rows hold any.

    `labels [N, L]` is above 0 where a label holds. Each true label of a row weighs its share of the row, so the weight
    that a set holds is that of its rows less their false negative rates, and the lambda of conformal risk control is a
    conformal quantile of true labels beside a new row that weighs 1 as a whole.
    """
    held = np.asarray(labels) > 0
    weight = np.where(held.any(axis=1), 1.0 if weight is None else np.asarray(weight, np.float64), 0.0)
    each = weight / np.maximum(held.sum(axis=1), 1)
    row, label = np.nonzero(held)
    own = np.asarray(probabilities, np.float64)[row, label]
    return _as_least(conformal_quantile(-own, coverage, each[row], new=weight_of_new(weight)))


def _as_least(quantile: float) -> np.float32:
    return np.float32(0.0 if math.isinf(quantile) else -quantile * (1.0 - ROUNDING))


def half_widths(
    predictions: np.ndarray, targets: np.ndarray, coverage: float, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return `f32[T]`, half the width of the intervals around `predictions [N, T]`; infinite with too few rows."""
    errors = np.abs(np.asarray(predictions, np.float64) - np.asarray(targets, np.float64))
    return np.array([conformal_quantile(e, coverage, weight) * (1.0 + ROUNDING) for e in errors.T], np.float32)


def widening(
    intervals: np.ndarray, targets: np.ndarray, coverage: float, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return `f32[T]`: by how much both ends of `intervals [N, T, 2]` give way; infinite with too few rows."""
    low, high = np.moveaxis(np.asarray(intervals, np.float64), -1, 0)
    outside = np.maximum(low - targets, targets - high)
    found = np.array([conformal_quantile(column, coverage, weight) for column in outside.T])
    return (found + ROUNDING * np.abs(found)).astype(np.float32)
