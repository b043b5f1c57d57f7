"""Matrix scaling: the class that a network leans to wrongly is corrected by the others. Host, NumPy f64.

A temperature makes a network more or less sure; it cannot tell that one class is named too often, or that where `5` and
`7` are probable it is mostly `6`. A matrix and an offset of each class can (Guo et al. 2017, arXiv 1706.04599, section
4.2), and overfit few rows, so they are drawn towards "nothing to mend" (as ODIR does, Kull et al. 2019, arXiv
1910.12656), and kept only where cross-validation within the rows says that it helps.
"""

from typing import NamedTuple

import numpy as np

from mmjax.training.calibration import MOST_ROWS, log_of
from mmjax.training.classification_metrics import log_loss_rows

SPREADS = (0.05, 0.2)
"""Standard deviations of a Gaussian prior of the matrix around the identity, to choose from."""
OFFSETS = 3.0
"""Standard deviation of the offsets' prior, in those of the matrix."""
SELECTING = 0.08
"""Standard deviation of the offsets' prior where epochs are compared."""
FOLDS = 5
MOST_CLASSES = 50
"""Of more classes the matrix has more entries than rows could tell."""
_NEWTON_STEPS, _CG_STEPS, _ENOUGH = 20, 20, 1e-7


class Mixing(NamedTuple):
    """What to do with the logarithm of K probabilities, see `mixed`."""

    matrix: np.ndarray
    """f64[K, K], the identity for nothing."""
    offsets: np.ndarray
    """f64[K]."""


class Chosen(NamedTuple):
    """A Mixing that helps."""

    mixing: Mixing
    held_out: np.ndarray
    """f64[N, K]: probabilities of each row under a Mixing of rows that are not in its fold."""
    before: float
    """Log loss of the rows as they are."""
    after: float
    """Log loss of `held_out`."""


def mixed(probabilities: np.ndarray, mixing: Mixing) -> np.ndarray:
    """Return `softmax(x @ matrix + offsets)` f64[N, K], x the logarithms of probabilities less their mean over classes.

    >>> mixed(np.array([[0.25, 0.75]]), Mixing(np.eye(2), np.zeros(2)))
    array([[0.25, 0.75]])
    """
    return np.exp(_log_softmax(_centred(probabilities) @ mixing.matrix + mixing.offsets))


def choose_mixing(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None) -> Chosen | None:
    """Return the Mixing for rows that were not trained on, or None where none is better.

    Each of SPREADS is tried on FOLDS; the least held-out log loss wins if it is below that of `probabilities
    f64[N, K]`. No margin is asked for: these rows have chosen the network's best epoch, so what it says of them is
    better already than what it says of new ones. `weight f64[N]` counts rows. None too for fewer rows than folds, more
    than MOST_CLASSES, and probabilities that are not finite.
    """
    counts = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    used = np.flatnonzero(counts > 0)
    if len(used) < FOLDS or probabilities.shape[1] > MOST_CLASSES or not np.isfinite(probabilities).all():
        return None
    counts = counts * (len(used) / counts.sum())
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    each = [_held_out(probabilities, labels, counts, fold, spread) for spread in SPREADS]
    before, *after = (float(np.average(log_loss_rows(p, labels), weights=counts)) for p in (probabilities, *each))
    best = int(np.argmin(after))
    if not after[best] < before:
        return None
    mixing = fit_mixing(probabilities, labels, counts, spread=SPREADS[best])
    return Chosen(mixing, each[best], before, after[best])


def _held_out(
    probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray, fold: np.ndarray, spread: float
) -> np.ndarray:
    """Return f64[N, K]: each fold under the Mixing of the other folds."""
    made = np.empty(probabilities.shape)
    for number in range(FOLDS):
        own = fold == number
        rest = probabilities[~own], labels[~own], weight[~own]
        made[own] = mixed(probabilities[own], fit_mixing(*rest, spread=spread))
    return made


def fit_mixing(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray, *, spread: float) -> Mixing:
    """Return the most probable Mixing given rows, priors (SPREADS, OFFSETS) and labels smoothed by 1 / (n + 1)."""
    if len(labels) > MOST_ROWS:
        some = np.sort(np.random.default_rng(0).permutation(len(labels))[:MOST_ROWS])
        probabilities, labels, weight = probabilities[some], labels[some], weight[some]
    logs, k = _centred(probabilities), probabilities.shape[1]
    x = np.column_stack([logs, np.ones(len(labels))])
    added = _most_probable(logs, x, labels, weight, np.append(np.ones(k), OFFSETS**-2) / spread**2)
    return Mixing(np.eye(k) + added[:k], added[k])


def with_offsets(probabilities: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Return f64[N, K]: the probabilities when each class has the offset that suits these rows.

    A quick likeness of what a Mixing will do, to compare networks by. Its prior is narrow (SELECTING), or chance would
    choose among hundreds of epochs. As they are with two classes or more than MOST_CLASSES.
    """
    if not 2 < probabilities.shape[1] <= MOST_CLASSES:
        return np.asarray(probabilities, np.float64)
    counts = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    counts = counts * (np.count_nonzero(counts) / counts.sum())
    held, said = np.bincount(labels, weights=counts, minlength=probabilities.shape[1]), probabilities
    offsets = np.zeros(len(held))
    for _ in range(_NEWTON_STEPS):
        shares = counts[:, None] * said
        slope = shares.sum(axis=0) - held + offsets / SELECTING**2
        curve = np.diag(shares.sum(axis=0) + SELECTING**-2) - shares.T @ said
        step = np.linalg.solve(curve, -slope)
        step = step / max(1.0, np.abs(step).max())
        offsets = offsets + step
        said = probabilities * np.exp(offsets)
        said = said / said.sum(axis=1, keepdims=True)
        if np.abs(step).max() < 1e-3:
            break
    return said


def _most_probable(
    logits: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    precision: np.ndarray,
) -> np.ndarray:
    """Return what `x f64[N, D]` adds to logits f64[N, K], f64[D, K]: softmax regression, each row of it with a prior.

    The objective is convex: Newton's method, its equations solved by conjugate gradients that are preconditioned with
    Böhning's bound of the Hessian (1992), and a step that is halved until it gains.
    """
    k, smooth, penalty = logits.shape[1], 1.0 / (weight.sum() + 1.0), precision[:, None]
    wanted = weight[:, None] * (smooth / k + (1.0 - smooth) * (labels[:, None] == np.arange(k)))
    bound = np.linalg.inv(0.5 * np.einsum("nd,n,ne->de", x, weight, x, optimize=True) + np.diag(precision))

    def loss(added: np.ndarray) -> tuple[float, np.ndarray]:
        logs = _log_softmax(logits + x @ added)
        return float(0.5 * (penalty * added**2).sum() - (wanted * logs).sum()), logs

    added = np.zeros((x.shape[1], k))
    value, logs = loss(added)
    for _ in range(_NEWTON_STEPS):
        likely = np.exp(logs)
        shares = weight[:, None] * likely
        gradient = x.T @ (shares - wanted) + penalty * added
        step = _newton_step(gradient, bound, x, likely, shares, penalty)
        slope, length, before = float((gradient * step).sum()), 1.0, value
        while True:
            value, logs = loss(added + length * step)
            if value <= before + 1e-4 * length * slope or length < 1e-6:
                break
            length *= 0.5
        added = added + length * step
        if not before - value > _ENOUGH * abs(value):
            break
    return added


def _newton_step(
    gradient: np.ndarray, bound: np.ndarray, x: np.ndarray, likely: np.ndarray, shares: np.ndarray, penalty: np.ndarray
) -> np.ndarray:
    """Return about minus the inverse Hessian times the gradient, f64[D, K]."""

    def curved(v: np.ndarray) -> np.ndarray:
        along = x @ v
        mean = (likely * along).sum(axis=1, keepdims=True)
        return x.T @ (shares * (along - mean)) + penalty * v

    step, rest = np.zeros_like(gradient), -gradient
    way = near = bound @ rest
    size = first = float((rest * near).sum())
    for _ in range(_CG_STEPS):
        if size <= 1e-6 * first:
            break
        bent = curved(way)
        length = size / float((way * bent).sum())
        step, rest = step + length * way, rest - length * bent
        near = bound @ rest
        size, last = float((rest * near).sum()), size
        way = near + (size / last) * way
    return step


def _centred(probabilities: np.ndarray) -> np.ndarray:
    logs = log_of(probabilities)
    return logs - logs.mean(axis=1, keepdims=True)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits - logits.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
