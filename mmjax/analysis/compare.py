"""Two models or runs side by side: their metrics and what their configs say differently."""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mmjax.analysis.present import HEADLINE
from mmjax.analysis.report import HEADLINES, OUT_OF_FOLD, Metrics, Report, meaningful
from mmjax.analysis.tables import Table, number, printable, shorten
from mmjax.artifact.answers import Answers
from mmjax.config import Config
from mmjax.config_load import config_keys, config_to_recipe, diff_configs
from mmjax.data.audit_rows import counted
from mmjax.schema import Target

SPLITS = ("test", "validation", OUT_OF_FOLD, "train")
NONE: Mapping[str, tuple[float, float]] = MappingProxyType({})
NOISE = ("95 % of difference", "than noise")
LOSS_OPTIONS = ("label_smoothing", "focal_gamma", "huber_delta", "quantiles", "class_weights")
"""Keys of `training` that change what its loss measures."""


class Side(NamedTuple):
    """One of two models or runs, as far as it is known."""

    name: str
    config: Config
    metrics: Metrics
    target: Target | None
    """None where a run has not got so far."""
    report: Report
    """Empty where a run is not finished."""
    answers: Answers | None
    """To test rows; None where none are kept."""
    decided: frozenset[str] = frozenset()
    """The keys of `config` that the recipe decided."""


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
    main: bool = False
    """Whether it is of those a report shows, on the first split that both have."""


class ConfigDifference(NamedTuple):
    """One key that two configs set differently; None where it is absent."""

    key: str
    a: Any
    b: Any
    recipe: bool = False
    """Whether the recipe decided it wherever it is there."""


class Comparison(NamedTuple):
    """What is the same and what differs between `a` and `b`."""

    a: str
    b: str
    metrics: list[MetricDifference]
    config: list[ConfigDifference]
    noise: str = ""
    """How the intervals of the differences were computed, or why they could not be."""
    losses: str = ""
    """Why no losses are subtracted; empty where they are of one kind."""


def compare(a: Side, b: Side) -> Comparison:
    """Return the Comparison of two models or runs, with what the luck of the test rows makes of their differences.

    Of those that predict different things there are no metrics, and `noise` says so.
    """
    different = "" if a.target is None or b.target is None else different_targets(a.target, b.target)
    if different:
        return Comparison(a.name, b.name, [], compare_configs(a, b), different)
    from mmjax.analysis.noise import difference_noise  # here, for it imports JAX
    from mmjax.backend import configure

    configure(device="cpu")
    tested = a.metrics.get("test", {}), b.metrics.get("test", {})
    noise = difference_noise(a.answers, b.answers, names=(a.name, b.name), metrics=tested)
    first, second = (meaningful(side.metrics, side.report) for side in (a, b))
    losses = different_losses(a, b)
    found = compare_metrics(first, second, noise.intervals, losses=not losses)
    return Comparison(a.name, b.name, found, compare_configs(a, b), noise.how, losses)


def compare_configs(a: Side, b: Side) -> list[ConfigDifference]:
    """Return every key that differs."""
    asked = (config_keys(a.config) - a.decided) | (config_keys(b.config) - b.decided)
    found = diff_configs(a.config, b.config)
    return [ConfigDifference(key, left, right, recipe=key not in asked) for key, left, right in found]


def different_losses(a: Side, b: Side) -> str:
    """Return why the losses of two cannot be compared: they measure different things; empty where they do not."""
    kinds = [_loss_kind(side) for side in (a, b)]
    return "" if kinds[0] == kinds[1] else f"loss: not subtracted, as they are of unlike kind ({' / '.join(kinds)})"


def _loss_kind(side: Side) -> str:
    """Return the loss with what changes its meaning, in words."""
    content = side.report.get("config") or config_to_recipe(side.config)
    training = content.get("training", {})
    options = [f"{key} {_shown(training[key])}" for key in LOSS_OPTIONS if training.get(key) not in (None, 0, "none")]
    return " ".join([training.get("loss", "that of the recipe"), *options])


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
    a: Metrics, b: Metrics, intervals: Mapping[str, tuple[float, float]] = NONE, *, losses: bool = True
) -> list[MetricDifference]:
    """Return every metric of either, the test split first, and in it those that a report shows.

    `losses` says whether the losses are of one kind: others are not subtracted.
    """
    found = []
    splits = sorted({*a, *b}, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    first = next((split for split in splits if a.get(split) and b.get(split)), None)
    for split in splits:
        names = dict.fromkeys([*a.get(split, {}), *b.get(split, {})])
        for metric in (
            *(name for name in HEADLINE if name in names),
            *(name for name in names if name not in HEADLINE),
        ):
            left, right = (_value(side.get(split, {}).get(metric)) for side in (a, b))
            difference = _difference(left, right) if losses or metric != "loss" else None
            spread = intervals.get(metric) if split == "test" and difference is not None else None
            larger = None if spread is None else spread[0] > 0 or spread[1] < 0
            main = split == first and metric in HEADLINE
            found.append(MetricDifference(split, metric, left, right, difference, spread, larger, main))
    return found


def _difference(a: float | None, b: float | None) -> float | None:
    return b - a if a is not None and b is not None and math.isfinite(a) and math.isfinite(b) else None


def metrics_table(metrics: Metrics) -> Table:
    """Return the metrics as a table, a column for each split."""
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = (tuple(number(_value(values.get(name))) for values in metrics.values()) for name in names)
    return Table("", ("metric", *metrics), tuple((name, *row) for name, row in zip(names, rows, strict=True)))


def comparison_tables(compared: Comparison, *, everything: bool = False) -> list[Table]:
    """Return what the configs set differently, if anything, and the metrics side by side with their difference.

    Without `everything` what the recipe decided differently is left out, and what no report shows or is of another
    split than the first that both have; a note counts it.
    """
    config = [row for row in compared.config if everything or not row.recipe]
    shown = [row for row in compared.metrics if everything or row.main] or compared.metrics
    noisy = any(row.interval for row in shown)
    metrics = tuple(
        (
            *(row.split, row.metric, number(row.a), number(row.b), _signed(row.difference)),
            *(_noise_cells(row) if noisy else ()),
        )
        for row in shown
    )
    header = ("split", "metric", compared.a, compared.b, "difference", *(NOISE if noisy else ()))
    keys = tuple((row.key, _shown(row.a), _shown(row.b)) for row in config)
    unlike = compared.losses if any(row.metric == "loss" for row in shown) else ""
    hidden = _hidden(len(compared.metrics) - len(shown), len(compared.config) - len(config))
    note = "\n".join(filter(None, (noise_line(compared), unlike, hidden)))
    side_by_side = Table("", header, metrics, note=note, text_columns=2)
    differing = Table("", ("config", compared.a, compared.b), keys, text_columns=3)
    return [table for table in (differing, side_by_side) if table.rows]


def _hidden(metrics: int, keys: int) -> str:
    """Return what is not shown, in words; empty where all is."""
    told = [f"{counted(metrics, 'value')} of losses and other splits"] if metrics else []
    told += [f"{counted(keys, 'key')} that the recipe decided differently"] if keys else []
    return f"with --all also {' and '.join(told)}" if told else ""


def noise_line(compared: Comparison) -> str:
    """Return which metrics differ by more than noise on the test split; why not, where that is not known."""
    known = [row for row in compared.metrics if row.interval is not None]
    larger = ", ".join(row.metric for row in known if row.larger_than_noise)
    if not known:
        return compared.noise
    asked = ", ".join(row.metric for row in known)
    told = f"larger than noise on test: {larger}" if larger else "none is larger than noise on test"
    told = f"of {asked}, {told}"
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
