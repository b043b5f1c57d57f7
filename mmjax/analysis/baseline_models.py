"""The simple models that a network is compared with: logistic and ridge regression and nearest neighbours, in JAX.

Each is fitted full-batch on `Rows` of standardised numbers and one-hot categories, chooses its one setting on other
rows, and answers as `Fitted`. Shapes are padded to few sizes, so that few programs are compiled.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compiled

STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""Of the penalty beside the mean loss; scikit-learn's C is `1 / (strength x rows)`."""
NEIGHBOURS = (1, 5, 15, 50)
BLOCK = 512
"""Rows whose neighbours are looked for at a time."""
NEWTON_STEPS, CG_STEPS = 20, 12
ENOUGH = 1e-5
"""A Newton step that gains less of the loss is the last."""


class Rows(NamedTuple):
    """Rows to fit on or choose by, on the host."""

    x: np.ndarray
    """f32[N, D]."""
    y: np.ndarray
    """f32[N, K]: 1 in the column of the class; or f32[N, T], standardised numbers."""
    weight: np.ndarray
    """f32[N], sums to 1."""


class Fitted(NamedTuple):
    """What a baseline says."""

    answers: np.ndarray
    """f64[N, K] probabilities, or f64[N, T] standardised numbers."""
    chosen: str
    """Its setting, in words."""


def logistic_regression(train: Rows, choose: Rows, x: np.ndarray) -> Fitted:
    """Return multinomial logistic regression's probabilities of `x`: Newton's method, its equations solved by CG.

    A ridge penalty (not of the intercept) is taken from `STRENGTHS` by the log loss of `choose`, the strong ones first,
    each from where the one before ended. CG is preconditioned with Böhning's bound of the Hessian (1992), `X'WX / 2`.
    """
    data, choosing = _padded(train), _with_ones(choose.x)
    gram = np.asarray(_gram()(data), np.float64)
    penalised = np.r_[np.ones(choosing.shape[1] - 1), 0.0, np.zeros(data.x.shape[1] - choosing.shape[1])]
    solution = np.zeros((data.x.shape[1], train.y.shape[1]), np.float32)
    found = []
    for strength in STRENGTHS:
        penalty = (strength * penalised).astype(np.float32)
        bound = np.linalg.inv(0.5 * gram + np.diag(penalty + 1e-6)).astype(np.float32)
        before = np.inf
        for _ in range(NEWTON_STEPS):
            solution, loss = _newton_step()(solution, data, penalty, bound)
            if not before - float(loss) > ENOUGH * float(loss):
                break
            before = float(loss)
        weights = np.asarray(solution, np.float64)[: choosing.shape[1]]
        logs = _log_softmax(choosing @ weights)
        found.append((float(-(choose.weight[:, None] * choose.y * logs).sum()), weights, strength))
    _, weights, strength = min(found, key=lambda one: one[0])
    return Fitted(np.exp(_log_softmax(_with_ones(x) @ weights)), f"penalty {strength:g}")


def ridge_regression(train: Rows, choose: Rows, x: np.ndarray) -> Fitted:
    """Return ridge regression's numbers for `x`, in closed form; the penalty is taken from `STRENGTHS`."""
    data, choosing = _padded(train), _with_ones(choose.x)
    width = choosing.shape[1]
    solutions = np.asarray(_ridge()(data, np.array(STRENGTHS, np.float32), width - 1), np.float64)[:, :width]
    squared = [float((choose.weight[:, None] * (choosing @ each - choose.y) ** 2).sum()) for each in solutions]
    best = int(np.argmin(squared))
    return Fitted(_with_ones(x) @ solutions[best], f"penalty {STRENGTHS[best]:g}")


def nearest_neighbours(train: Rows, choose: Rows, x: np.ndarray, *, classes: bool) -> Fitted:
    """Return the weighted mean answer of the nearest `train` rows (Euclidean); how many is taken from `NEIGHBOURS`.

    Of classes the shares of `train` count as one more neighbour, so that no probability is 0.
    """
    counts = tuple(k for k in NEIGHBOURS if k <= len(train.x))
    data = _padded(train, ones=False)
    # Padding is farther than any row.
    norms = np.where(np.arange(len(data.x)) < len(train.x), np.einsum("nd,nd->n", data.x, data.x), np.inf)
    prior = (train.y * train.weight[:, None]).sum(axis=0) if classes else np.zeros(train.y.shape[1])
    weight = data.weight * len(train.x)  # a neighbour of mean weight counts as the prior does
    fixed = (data.x, norms.astype(np.float32), data.y, weight.astype(np.float32), prior.astype(np.float32))

    def ask(x: np.ndarray) -> np.ndarray:
        blocks = [_pad(x[start : start + BLOCK], BLOCK, data.x.shape[1]) for start in range(0, len(x), BLOCK)]
        answers = [np.asarray(_neighbours()(*fixed, block, counts=counts, smooth=classes)) for block in blocks]
        return np.concatenate(answers, axis=1)[:, : len(x)].astype(np.float64)

    losses = [
        -(choose.y * np.log(np.maximum(each, 1e-15))).sum(axis=1) if classes else ((each - choose.y) ** 2).sum(axis=1)
        for each in ask(choose.x)
    ]
    best = int(np.argmin([(choose.weight * loss).sum() for loss in losses]))
    return Fitted(ask(x)[best], f"{counts[best]} neighbour{'s' if counts[best] > 1 else ''}")


def _with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)


def _padded(rows: Rows, *, ones: bool = True) -> Rows:
    """Return the rows, with a last column of ones for the intercept, padded: columns of zeros, rows of weight 0."""
    x = _with_ones(rows.x) if ones else rows.x
    n, width = max(128, 1 << (len(x) - 1).bit_length()), -(-x.shape[1] // 16) * 16
    weight = np.zeros(n, np.float32)
    weight[: len(x)] = rows.weight
    return Rows(_pad(x, n, width), _pad(rows.y, n, rows.y.shape[1]), weight)


def _pad(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    padded = np.zeros((rows, columns), np.float32)
    padded[: len(x), : x.shape[1]] = x
    return padded


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@functools.cache
def _gram() -> Any:
    return compiled(lambda rows: rows.x.T @ (rows.x * rows.weight[:, None]))


@functools.cache
def _newton_step() -> Any:
    return compiled(newton_step)


def newton_step(solution: jax.Array, rows: Rows, penalty: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return weights f32[D, K] one Newton step on, and their penalised mean log loss; the best of four step lengths.

    `penalty f32[D]` is of each column; `bound f32[D, D]`, an inverse of an upper bound of the Hessian, speeds up CG.
    """
    x, y, weight = jnp.asarray(rows.x), jnp.asarray(rows.y), jnp.asarray(rows.weight)[:, None]
    logits = x @ solution
    probabilities = jax.nn.softmax(logits)
    gradient = x.T @ (weight * (probabilities - y)) + penalty[:, None] * solution

    def curve(direction: jax.Array) -> jax.Array:
        moved = x @ direction
        moved = probabilities * (moved - (probabilities * moved).sum(axis=1, keepdims=True))
        return x.T @ (weight * moved) + penalty[:, None] * direction

    step = jax.scipy.sparse.linalg.cg(curve, -gradient, tol=0.05, maxiter=CG_STEPS, M=lambda v: bound @ v)[0]
    moved = x @ step

    def loss(length: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(logits + length * moved)
        weights = solution + length * step
        return -(weight * y * logs).sum() + 0.5 * (penalty[:, None] * weights**2).sum()

    lengths = jnp.array([1.0, 0.4, 0.1, 0.0])
    losses = jax.lax.map(loss, lengths)
    best = jnp.nanargmin(losses)
    return solution + lengths[best] * step, losses[best]


@functools.cache
def _ridge() -> Any:
    def solve(rows: Rows, strengths: jax.Array, intercept: jax.Array) -> jax.Array:
        weighted = rows.x * rows.weight[:, None]
        gram, right = weighted.T @ rows.x, weighted.T @ rows.y
        places = jnp.arange(gram.shape[0])

        def one(strength: jax.Array) -> jax.Array:
            penalty = jnp.where(places == intercept, 1e-7, strength)
            return jax.scipy.linalg.solve(gram + jnp.diag(penalty), right, assume_a="pos")

        return jax.lax.map(one, strengths)

    return compiled(solve)


@functools.cache
def _neighbours() -> Any:
    def answers(
        x: jax.Array,
        norms: jax.Array,
        y: jax.Array,
        weight: jax.Array,
        prior: jax.Array,
        asked: jax.Array,
        *,
        counts: tuple[int, ...],
        smooth: bool,
    ) -> jax.Array:
        """Return f32[len(counts), B, K]."""
        nearness = 2.0 * asked @ x.T - norms[None, :]  # less the asked row's own norm, which orders nothing
        nearest = jax.lax.top_k(nearness, counts[-1])[1]
        own = weight[nearest]
        votes, total = jnp.cumsum(y[nearest] * own[:, :, None], axis=1), jnp.cumsum(own, axis=1)
        at = np.array(counts) - 1
        votes, total = votes[:, at].swapaxes(0, 1), total[:, at].T[:, :, None]
        return (votes + prior[None, None, :]) / (total + 1.0) if smooth else votes / total

    return compiled(answers, static=("counts", "smooth"))
