"""What baselines learn from: rows as a matrix of standardised numbers and one-hot categories, or as cells for trees."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmjax.analysis.baseline_models import Rows
from mmjax.analysis.boosting import Table
from mmjax.artifact.answers import Answers
from mmjax.data.pipeline import take
from mmjax.schema import Batch, Schema
from mmjax.transforms.base import chain
from mmjax.transforms.tabular import cyclic_dates, impute, one_hot, standardize

MOST_COLUMNS = 512
"""One-hot columns in all; beyond them the rarest categories of the largest columns count as unknown."""
FEATURES = ("numeric", "category")


class Labels(NamedTuple):
    """How labels become numbers that a baseline is fitted to."""

    classes: int
    """0 for regression; of several labels their number."""
    usual: np.ndarray
    """f64[K] shares of the classes, or f64[T] mean, of the training rows, weighted."""
    unit: np.ndarray
    """f64[T] deviation of the training rows; 1 for classes."""
    several: bool = False
    """Whether each of the `classes` is a label by itself, of yes or no; `usual` are the shares that hold it."""


def fit_labels(batch: Batch, train: np.ndarray, classes: int) -> Labels:
    """Return the Labels of the training rows; labels i32[N, L] of 0 and 1 are several."""
    label, weight = batch["label"][train], weights(batch, train)
    if classes and label.ndim == 2:
        return Labels(classes, weight @ label.astype(np.float64), np.ones(1), several=True)
    if classes:
        return Labels(classes, np.bincount(label, weights=weight, minlength=classes), np.ones(1))
    values = label.astype(np.float64)
    mean = weight @ values
    deviation = np.sqrt(weight @ (values - mean) ** 2)
    return Labels(0, mean, np.where(deviation > 0, deviation, 1.0))


def weights(batch: Batch, rows: np.ndarray) -> np.ndarray:
    """Return f64[N] that sum to 1."""
    weight = np.asarray(batch["weight"][rows], np.float64) if "weight" in batch else np.ones(len(rows))
    return weight / weight.sum()


def standard_labels(labels: Labels, batch: Batch, rows: np.ndarray) -> np.ndarray:
    """Return f64[N, T]: labels less the mean of the training rows, over their deviation."""
    return (batch["label"][rows].astype(np.float64) - labels.usual) / labels.unit


def fitting_rows(labels: Labels, batch: Batch, rows: np.ndarray, x: np.ndarray) -> Rows:
    """Return the Rows of a matrix for a baseline in JAX."""
    if labels.several:
        y = batch["label"][rows].astype(np.float32)
    elif labels.classes:
        y = np.eye(labels.classes, dtype=np.float32)[batch["label"][rows]]
    else:
        y = standard_labels(labels, batch, rows).astype(np.float32)
    return Rows(x, y, weights(batch, rows).astype(np.float32))


def trees_table(labels: Labels, batch: Batch, rows: np.ndarray) -> Table:
    """Return the rows for gradient boosting; of several labels `y` is i64[N, L]."""
    y = batch["label"][rows].astype(np.int64) if labels.classes else standard_labels(labels, batch, rows)[:, 0]
    return Table(cells(batch, rows), y, weights(batch, rows) * len(rows))


def cells(batch: Batch, rows: np.ndarray) -> np.ndarray:
    """Return f64[N, F + C]: numbers as they are, NaN for missing, then codes of categories."""
    return np.concatenate([batch[name][rows].astype(np.float64) for name in FEATURES if name in batch], axis=1)


def answers_of(labels: Labels, truth: Answers, found: np.ndarray, offset: float) -> Answers:
    """Return a baseline's Answers to the rows of `truth`: `found` are probabilities, or standardised numbers.

    `offset` is what labels in the batch have lost (`Target.offset`).
    """
    if labels.several:
        return truth._replace(prediction=(found > 0.5).astype(np.int64), probabilities=found.astype(np.float32))
    if labels.classes:
        return truth._replace(prediction=found.argmax(axis=1), probabilities=found.astype(np.float32))
    return truth._replace(prediction=found * labels.unit + labels.usual + np.float64(offset))


def make_design(
    schema: Schema, batch: Batch, train: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]:
    """Return what makes f32[N, D] of row indices, fitted on `train`, and what it leaves out, in words.

    Missing numbers are the mean, with an indicator; columns that do not vary on `train` are not there.
    """
    kept, notes = _kept_codes(schema, batch, train)
    cardinalities = tuple(int(codes.max()) + 1 for codes in kept)
    transforms = [cyclic_dates(schema.cyclic_features), impute("mean"), standardize()]
    transform = chain(*transforms, *([one_hot(cardinalities)] if kept else []))

    def inputs(rows: np.ndarray) -> Batch:
        found = take({name: batch[name] for name in FEATURES if name in batch}, rows)
        if kept:
            found["category"] = np.stack([codes[found["category"][:, i]] for i, codes in enumerate(kept)], axis=1)
        return found

    state = transform.fit(inputs(train))

    def matrix(rows: np.ndarray) -> np.ndarray:
        made = transform.apply(state, inputs(rows))
        return np.concatenate([made[name] for name in ("numeric", "dense") if name in made], axis=1)

    varies = np.ptp(matrix(train), axis=0) > 0
    return lambda rows: matrix(rows)[:, varies], notes


def _kept_codes(schema: Schema, batch: Batch, train: np.ndarray) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return for each category column its codes anew, 0 for those left out, and what is left out, in words."""
    counts = [np.bincount(batch["category"][train, i], minlength=codes) for i, codes in enumerate(schema.cardinalities)]
    most = max(map(len, counts), default=0)
    while most > 2 and sum(min(len(each), most) for each in counts) > MOST_COLUMNS:
        most = most * 3 // 4
    kept, notes = [], []
    for column, each in zip(schema.category_columns, counts, strict=True):
        frequent = 1 + np.argsort(-each[1:], kind="stable")[: most - 1]
        codes = np.zeros(len(each), np.int32)
        codes[np.sort(frequent)] = np.arange(1, len(frequent) + 1)
        kept.append(codes)
        if len(frequent) < len(each) - 1:
            notes.append(f"of '{column.name}' the {len(frequent)} most frequent of {len(each) - 1:,} categories")
    return kept, tuple(notes)
