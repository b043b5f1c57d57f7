"""Quantiles beside a network that was trained for them: what it and simple models are judged by, the pinball loss."""

from typing import NamedTuple

import numpy as np

from mmjax.analysis.baseline_data import Labels, standard_labels, weights
from mmjax.analysis.bootstrap import Resampled, resample
from mmjax.artifact.answers import Answers
from mmjax.schema import Batch

PINBALL = "pinball"
"""The metric."""
SPREAD = "quantiles of baselines: their answers, spread by their errors on the rows that their settings are chosen by"
MEAN = 0.0
"""What the baseline without a model answers to any row, standardised."""


class Quantiles(NamedTuple):
    """Quantiles of N rows."""

    levels: tuple[float, ...]
    """Ascending, within 0 and 1."""
    values: np.ndarray
    """f64[N, Q], in the unit of the target."""


def pinball_rows(label: np.ndarray, quantiles: Quantiles) -> np.ndarray:
    """Return f64[N], the pinball loss of each row, a mean over its quantiles, as `mmjax.training.losses.pinball`."""
    error, levels = label - quantiles.values, np.array(quantiles.levels)[None, :]
    return np.maximum(levels * error, (levels - 1.0) * error).mean(axis=1)


def pinball_of(rows: np.ndarray, weight: np.ndarray | None) -> float:
    """Return the pinball loss of rows f64[N]."""
    return float(np.average(rows, weights=weight))


def pinball_draws(answers: Answers, rows: np.ndarray, *, seed: int) -> Resampled | None:
    """Return the pinball loss of `rows f64[N]` and of draws, the same that `resample` makes; None where undefined.

    It is the mean absolute error of answers that are wrong by as much.
    """
    wrong = rows[:, None]
    return resample(answers._replace(label=np.zeros_like(wrong), prediction=wrong), seed=seed).get("mae")


def spread_around(
    prediction: np.ndarray,
    levels: tuple[float, ...],
    *,
    labels: Labels,
    batch: Batch,
    rows: np.ndarray,
    found: np.ndarray | float,
) -> Quantiles:
    """Return the Quantiles of a baseline that answers `prediction f64[N, 1]`, and to other `rows` standardised `found`.

    Its quantiles are the answer plus those of its errors on these rows, the smallest that reach their levels.
    """
    errors = (standard_labels(labels, batch, rows) - found) * labels.unit
    spread = np.quantile(errors[:, 0], levels, weights=weights(batch, rows), method="inverted_cdf")
    return Quantiles(levels, prediction + spread[None, :])


def median(labels: Labels, batch: Batch, rows: np.ndarray) -> np.ndarray:
    """Return f64[1], the median of the rows' standardised labels, which has the least absolute error."""
    values = standard_labels(labels, batch, rows)[:, 0]
    return np.quantile(values, [0.5], weights=weights(batch, rows), method="inverted_cdf")
