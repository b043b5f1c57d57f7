"""Drift: columns and answers that differ between the training rows and those that test them.

Numbers: the Kolmogorov-Smirnov distance D, missing cells counted as the largest. When the rows were dealt at random, D
exceeds t with a probability of at most 2 exp(-2 m t²), m = ab / (a + b) (Smirnov 1948; Wei and Dudley, Two-sample
Dvoretzky-Kiefer-Wolfowitz inequalities, 2012). Categories: the total variation distance V of their shares; dealing at
random, E V <= ½ sum of sqrt(p (1 - p) / m), and V exceeds its mean by t with a probability of at most exp(-2 m t²)
(El-Yaniv and Pechyony, Transductive Rademacher Complexity, JAIR 2009, Lemma 2: exchanging two rows moves V by 1/m).
Both hold for any size and any distribution. A distance that chance explains, or a small one, is not told.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmjax.data.audit_rows import Rows, counted, finding, hash_cells, named, sample
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS
from mmjax.schema import DATETIME_PARTS

DRIFT_ROWS = 100_000
"""Rows looked at of each split."""
FALSE_ALARMS = 1e-4
"""Probability that any column of a table that was dealt at random is said to drift."""
LARGE = 0.1
"""A smaller distance is not told: a tenth of the rows would have to change to make the shares equal."""
RARE = 1e-6
"""A category stands by itself if it is so unlikely that by chance no row of it was dealt to train."""


class _Drift(NamedTuple):
    column: str
    part: int
    distance: float
    said: str


class _Two(NamedTuple):
    """Two sets of rows to compare: `train` and `other`, of which as many as `size` (m) count as independent."""

    train: np.ndarray
    other: np.ndarray
    part: int
    size: float
    tests: int


def drift_findings(rows: Rows) -> list[Finding]:
    """Return the columns, and the target, whose values differ between train and validation or test."""
    found = [drift for two in _twos(rows) for drift in (*_columns(rows, two), *_target(rows, two))]
    if not found:
        return []
    found.sort(key=lambda drift: -drift.distance)
    names = dict.fromkeys(drift.column for drift in found)
    parts = sorted({drift.part for drift in found})
    between = f"differ between train and {' and '.join(PARTS[i] for i in parts)}"
    what = f"{between}: {counted(len(names), 'column')}, {named(names)}"
    examples = (f"'{d.column}': {d.said} (distance {d.distance:.2f})" for d in found)
    advice = "scores hold for rows like those tested: see how the rows were dealt, or shuffle them (split.strategy)"
    return [finding("drift", what, len(names), examples, advice)]


def _twos(rows: Rows) -> Iterator[_Two]:
    others = [(i, part) for i, part in enumerate(rows.split[1:3], 1) if len(part)]
    width = len(rows.schema.numeric_features) + len(rows.schema.category_columns) + 1
    train = sample(rows.split.train, DRIFT_ROWS)
    for i, part in others:
        other = sample(part, DRIFT_ROWS)
        a, b = (_independent(rows, chosen) for chosen in (train, other))
        yield _Two(train, other, i, a * b / (a + b), width * len(others))


def _independent(rows: Rows, chosen: np.ndarray) -> float:
    """Return how many of the rows count as independent: all, or with groups Kish's (sum n)² / sum n²."""
    if rows.groups is None:
        return float(len(chosen))
    keys = hash_cells({"group": rows.groups[chosen]}, ["group"])
    counts = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def _columns(rows: Rows, two: _Two) -> Iterator[_Drift]:
    schema = rows.schema
    if "numeric" in rows.batch:
        a, b = (np.asarray(rows.batch["numeric"][chosen]) for chosen in (two.train, two.other))
        for i, name in enumerate(schema.numeric_features):
            if _base(rows, name) != rows.ordered_by:
                offset = _offset(rows, name)
                yield from _numbers(name.removesuffix(f".{DATETIME_PARTS[0]}"), a[:, i], b[:, i], two, offset)
    if "category" in rows.batch:
        a, b = (np.asarray(rows.batch["category"][chosen]) for chosen in (two.train, two.other))
        for i, column in enumerate(schema.category_columns):
            if column.name != rows.ordered_by:
                yield from _categories(column.name, a[:, i], b[:, i], two, ("none or rare", *column.vocabulary))


def _target(rows: Rows, two: _Two) -> Iterator[_Drift]:
    label, target = rows.batch["label"], rows.schema.target
    a, b = (np.asarray(label[chosen]) for chosen in (two.train, two.other))
    name = target.column
    if target.labels:
        for i, label in enumerate(target.labels):
            words = ("none or rare", label.negative, label.positive)
            yield from _categories(label.column, a[:, i] + 1, b[:, i] + 1, two, words)
    elif target.classes:
        yield from _categories(name, a + 1, b + 1, two, ("none or rare", *target.classes))
    else:
        yield from _numbers(name, a[:, 0], b[:, 0], two, target.offset)


def _base(rows: Rows, feature: str) -> str:
    """Return the column of the table that a feature is or comes from."""
    for part in DATETIME_PARTS:
        base = feature.removesuffix(f".{part}")
        if base != feature and any(c.name == base for c in rows.schema.of_kind("datetime")):
            return base
    return feature


def _offset(rows: Rows, feature: str) -> float:
    return next((c.offset for c in rows.schema.of_kind("numeric") if c.name == feature), 0.0)


def _numbers(name: str, a: np.ndarray, b: np.ndarray, two: _Two, offset: float) -> Iterator[_Drift]:
    distance = ks_distance(a, b)
    if distance < LARGE or 2 * math.exp(-2 * two.size * distance**2) > FALSE_ALARMS / two.tests:
        return
    middles = [_middle(values, offset) for values in (a, b)]
    yield _Drift(name, two.part, distance, f"{middles[0]} in train, {middles[1]} in {PARTS[two.part]}")


def _middle(values: np.ndarray, offset: float) -> str:
    present = values[~np.isnan(values)]
    gaps = 1 - len(present) / len(values)
    missing = f"{gaps:.0%} missing" if gaps >= 0.005 else ""
    median = f"median {float(np.median(present)) + offset:g}" if len(present) else ""
    return ", ".join(filter(None, (median, missing)))


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of the shares of `a` and `b` (f[N], f[M]) up to any value; NaN is the largest."""
    a, b = np.sort(a), np.sort(b)
    values = np.concatenate([a, b])
    return float(np.abs(_shares(a, values) - _shares(b, values)).max())


def _shares(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.searchsorted(ordered, values, side="right") / len(ordered)


def _categories(name: str, a: np.ndarray, b: np.ndarray, two: _Two, texts: tuple[str, ...]) -> Iterator[_Drift]:
    """Yield the drift of codes, 0 and the rare ones taken as one: a rare one may be in one split only, by chance."""
    counts = np.stack([np.bincount(codes, minlength=len(texts)) for codes in (a, b)]).astype(np.float64)
    fewest = math.log(RARE) / math.log(len(b) / (len(a) + len(b)))
    rare = counts.sum(axis=0) < max(fewest, 2)
    rare[0] = True
    counts[:, 0] = counts[:, rare].sum(axis=1)
    counts[:, 1:][:, rare[1:]] = 0
    distance, largest = total_variation(counts)
    pooled = counts.sum(axis=0) / counts.sum()
    by_chance = 0.5 * float(np.sqrt(pooled * (1 - pooled) / two.size).sum())
    excess = distance - by_chance
    if excess <= 0 or distance < LARGE or math.exp(-2 * two.size * excess**2) > FALSE_ALARMS / two.tests:
        return
    shares = counts[:, largest] / counts.sum(axis=1)
    said = f"'{texts[largest]}' is {shares[0]:.1%} of train, {shares[1]:.1%} of {PARTS[two.part]}"
    yield _Drift(name, two.part, distance, said)


def total_variation(counts: np.ndarray) -> tuple[float, int]:
    """Return half the sum of the differences between the shares in two rows of counts f[2, K], and the largest one."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    differences = np.abs(shares[0] - shares[1])
    return float(differences.sum()) / 2, int(differences.argmax())
