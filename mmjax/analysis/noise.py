"""Whether two models differ by more than the luck of the test rows, from the Answers that their bundles keep."""

from collections.abc import Mapping
from typing import NamedTuple

from mmjax.analysis.bootstrap import LEAST_ROWS, Interval, Resamples, difference_intervals, resample
from mmjax.artifact.answers import Answers, same_rows


class Noise(NamedTuple):
    """What the luck of the test rows may make of the difference of two models."""

    intervals: dict[str, Interval]
    """95 % interval of `b - a` by metric; empty where there is nothing to compute it from."""
    how: str
    """How it was computed, or why it could not be, in words."""


def difference_noise(
    a: Answers | None, b: Answers | None, *, names: tuple[str, str], metrics: tuple[Mapping, Mapping], seed: int = 0
) -> Noise:
    """Return the Noise of two models' kept Answers; `metrics` are those of all test rows, by name.

    Paired where both are of the same test rows, else unpaired, and `how` says why.
    """
    absent = [name for name, answers in zip(names, (a, b), strict=True) if answers is None]
    if a is None or b is None:
        return Noise({}, f"cannot be compared row by row: no answers to test rows are kept of {' and '.join(absent)}")
    if (a.probabilities is None) != (b.probabilities is None):
        return Noise({}, "cannot be compared: one predicts classes, the other numbers")
    if (rows := min(len(a.row), len(b.row))) < LEAST_ROWS:
        return Noise({}, f"cannot be told from noise: expected {LEAST_ROWS} test rows or more, got {rows}")
    other = same_rows(a, b)
    first, second = resample(a, seed=seed), resample(b, seed=seed + 1 if other else seed)
    found = difference_intervals(_reported(first, metrics[0]), _reported(second, metrics[1]))
    kept = f"{len(a.row):,} of " if len(a.row) < a.total else ""
    if other:
        return Noise(found, f"{other}: intervals are of an unpaired bootstrap, which sees only large differences")
    return Noise(found, f"intervals are of a paired bootstrap over the same {kept}{a.total:,} test rows")


def _reported(found: Resamples, metrics: Mapping[str, float | None]) -> Resamples:
    """Return the Resamples around the metrics of all rows; those that were not reported are left out."""
    values = {name: metrics.get(name) for name in found}
    return {name: found[name]._replace(value=value) for name, value in values.items() if value is not None}
