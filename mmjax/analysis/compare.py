"""Two models or runs side by side: their metrics and what their configs say differently."""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mmjax.analysis.report import HEADLINES, OUT_OF_FOLD
from mmjax.analysis.tables import Table, number, printable, shorten
from mmjax.config import Config
from mmjax.config_load import diff_configs
from mmjax.schema import Target

Metrics = Mapping[str, Mapping[str, float | None]]
"""split -> metric -> value; None or NaN where it is undefined."""

SPLITS = ("test", "validation", OUT_OF_FOLD, "train")
NONE: Mapping[str, tuple[float, float]] = MappingProxyType({})
NOISE = ("95 % of difference", "than noise")


class MetricDifference(NamedTuple):
    """One metric of two; None where it is undefined or absent."""

    split: str
    metric: str
    a: float | None
    b: float | None
    difference: float | None
    """`b - a`."""
    interval: tuple[float, float] | None = None
    """95 % interval of the difference by the luck of the test rows; None where it is not known."""
    larger_than_noise: bool | None = None
    """Whether the interval leaves out 0."""


class ConfigDifference(NamedTuple):
    """One key that two configs set differently; None where it is absent."""

    key: str
    a: Any
    b: Any


class Comparison(NamedTuple):
    """What is the same and what differs between `a` and `b`."""

    a: str
    b: str
    metrics: list[MetricDifference]
    config: list[ConfigDifference]
    noise: str = ""
    """How the intervals of the differences were computed, or why they could not be."""


def compare(
    a: str,
    b: str,
    metrics: tuple[Metrics, Metrics],
    configs: tuple[Config, Config],
    *,
    intervals: Mapping[str, tuple[float, float]] = NONE,
    noise: str = "",
) -> Comparison:
    """Return the Comparison of two models or runs named `a` and `b`.

    `intervals` are of the differences on the test split, by metric, and `noise` says where they are from.
    """
    differing = [ConfigDifference(*row) for row in diff_configs(*configs)]
    return Comparison(a, b, compare_metrics(*metrics, intervals), differing, noise)


def different_targets(a: Target, b: Target) -> str:
    """Return why metrics of two models cannot be compared: they predict different things; empty where they do not.

    >>> different_targets(Target(column="age", task="regression"), Target(column="price", task="regression"))
    'they predict different things (age / price): metrics cannot be compared'
    """
    if (a.column, a.task, a.classes, a.labels) == (b.column, b.task, b.classes, b.labels):
        return ""
    told = [target.column if a.column != b.column else _with_classes(target) for target in (a, b)]
    return f"they predict different things ({printable(' / '.join(told))}): metrics cannot be compared"


def _with_classes(target: Target) -> str:
    return f"{target.column}: {shorten(', '.join(target.classes) or 'a number', 60)}"


def compare_metrics(
    a: Metrics, b: Metrics, intervals: Mapping[str, tuple[float, float]] = NONE
) -> list[MetricDifference]:
    """Return every metric of either, the test split first."""
    found = []
    for split in sorted({*a, *b}, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)):
        for metric in dict.fromkeys([*a.get(split, {}), *b.get(split, {})]):
            left, right = (_value(side.get(split, {}).get(metric)) for side in (a, b))
            difference = _difference(left, right)
            spread = intervals.get(metric) if split == "test" and difference is not None else None
            larger = None if spread is None else spread[0] > 0 or spread[1] < 0
            found.append(MetricDifference(split, metric, left, right, difference, spread, larger))
    return found


def _difference(a: float | None, b: float | None) -> float | None:
    return b - a if a is not None and b is not None and math.isfinite(a) and math.isfinite(b) else None


def metrics_table(metrics: Metrics) -> Table:
    """Return the metrics as a table, a column for each split."""
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = (tuple(number(_value(values.get(name))) for values in metrics.values()) for name in names)
    return Table("", ("metric", *metrics), tuple((name, *row) for name, row in zip(names, rows, strict=True)))


def comparison_tables(compared: Comparison) -> list[Table]:
    """Return the metrics side by side with their difference, and the keys that the configs set differently, if any."""
    noisy = any(row.interval for row in compared.metrics)
    metrics = tuple(
        (
            *(row.split, row.metric, number(row.a), number(row.b), _signed(row.difference)),
            *(_noise_cells(row) if noisy else ()),
        )
        for row in compared.metrics
    )
    header = ("split", "metric", compared.a, compared.b, "difference", *(NOISE if noisy else ()))
    keys = tuple((row.key, _shown(row.a), _shown(row.b)) for row in compared.config)
    side_by_side = Table("", header, metrics, note=noise_line(compared), text_columns=2)
    differing = Table("", ("config", compared.a, compared.b), keys, text_columns=3)
    return [table for table in (side_by_side, differing) if table.rows]


def noise_line(compared: Comparison) -> str:
    """Return which metrics differ by more than noise on the test split; why not, where that is not known."""
    known = [row for row in compared.metrics if row.interval is not None]
    larger = ", ".join(row.metric for row in known if row.larger_than_noise)
    if not known:
        return compared.noise
    told = (
        f"differences larger than noise on test: {larger}" if larger else "no difference on test is larger than noise"
    )
    return f"{told}; {compared.noise}"


def _noise_cells(row: MetricDifference) -> tuple[str, str]:
    if row.interval is None:
        return "-", "-"
    low, high = row.interval
    return f"{_signed(low)} to {_signed(high)}", "larger" if row.larger_than_noise else "within"


def headline(metrics: Metrics) -> str:
    """Return the one figure a list has room for.

    >>> headline({"train": {"accuracy": 1.0}, "test": {"loss": 0.3, "accuracy": 0.9333}})
    'test accuracy 0.9333'
    >>> headline({"train": {"accuracy": 1.0}, "out_of_fold": {"accuracy": 0.9}})
    'out_of_fold accuracy 0.9000'
    """
    for split in SPLITS:
        for metric in HEADLINES:
            value = _value(metrics.get(split, {}).get(metric))
            if value is not None:
                return f"{split} {metric} {number(value)}"
    return "-"


def _value(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _signed(difference: float | None) -> str:
    if difference is None:
        return "-"
    return f"+{number(difference)}" if difference > 0 else number(difference)


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
