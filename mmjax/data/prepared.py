"""Prepared: what every way of reading data ends in, and the dealing of its rows."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from mmjax.config import Config, ImageData, TabularData, fold_count
from mmjax.data.cells import missing_mask, texts
from mmjax.data.encode import encode_label
from mmjax.data.labels import one_sided, strata
from mmjax.data.split import PARTS, Split, Strategy, deal_folds, split_rows
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Batch, Columns, Schema

SHOWN = 5
"""How many rows without a group or time are named."""


T = TypeVar("T")


class Quarantined(NamedTuple):
    """A row or file that broke a rule: a line of the run's `quarantine.csv`."""

    name: str
    """The line of a table, or the file of an image."""
    column: str
    value: str
    reason: str
    kept: bool
    """True where the policy left the row in."""


class Finding(NamedTuple):
    """Something that the audit saw in the data."""

    check: str
    """The key of `audit` in the config that it falls under."""
    severity: str
    """`warn` or `fail`."""
    what: str
    """One line for people: what, how many, in which splits or columns."""
    found: int
    """How many."""
    examples: tuple[str, ...]
    """Rows, files or columns, at most a dozen."""
    advice: str
    """What to do."""
    leaked: tuple[int, ...] = ()
    """The test rows (by their place in the batch) that are copies of training rows: scores on them are too good."""


class Prepared(NamedTuple):
    """Rows ready to train on, all on the host."""

    schema: Schema
    names: np.ndarray
    """[N]: what identifies a row: its id, its path, or its line in the file."""
    split: Split
    batch: Batch
    """All kept rows, encoded, with `label` (and `weight`); arrays in memory, or mapped from the cache on disk."""
    golden: Columns
    """The golden rows as read, feature columns only."""
    notes: tuple[str, ...]
    """Everything dropped, changed or decided about the data, each a line with a count and a reason."""
    quarantined: tuple[Quarantined, ...] = ()
    findings: tuple[Finding, ...] = ()
    streamed: bool = False
    """True where `batch` is mapped from disk and is to be read batch by batch."""
    fingerprint: str = ""
    """sha256 of what is trained and tested on: the encoded rows, their split, the schema, the golden rows as read."""


def split_sizes(prepared: Prepared) -> dict[str, int]:
    """Return rows by split."""
    return {part: len(getattr(prepared.split, part)) for part in PARTS}


def rows_to_learn(split: Split, weight: np.ndarray | None = None) -> tuple[int, int]:
    """Return how many rows a model is trained on, and how many are there to choose by; with folds, those of all folds.

    Of folds of unequal size the one that leaves the fewest rows counts. Rows to choose by are those above 0 of
    `weight f32[N]`, of all rows: others say nothing, neither of the best epoch nor of a temperature.
    """
    chosen_by = split.validation if split.folds is None else split.train
    count = len(chosen_by) if weight is None else int(np.count_nonzero(weight[chosen_by]))
    if split.folds is None:
        return len(split.train), count
    return len(split.train) - int(np.bincount(split.folds).max()), count


def class_counts(prepared: Prepared) -> dict[str, dict[str, int]]:
    """Return rows by split and class, or rows that a label holds for; empty for regression."""
    classes = prepared.schema.target.classes
    if not classes:
        return {}
    label = prepared.batch["label"]
    several = prepared.schema.target.task == "multilabel"
    counts = {}
    for part in PARTS:
        found = label[getattr(prepared.split, part)]
        counts[part] = found.sum(axis=0) if several else np.bincount(found, minlength=len(classes))
    return {part: dict(zip(classes, found.tolist(), strict=True)) for part, found in counts.items()}


def audited_by(config: Config, cells: np.ndarray | None) -> tuple[np.ndarray | None, str | None]:
    """Return what the audit has to know of a split: (the cells of `split.column` as groups, the column of time)."""
    strategy = config.split.strategy
    groups = cells if strategy in ("group", "group_stratified") else None
    return groups, config.split.column if strategy == "time" else None


def golden_rows(split: Split, count: int) -> np.ndarray:
    """Return the indices of at most `count` rows to keep in the bundle, those that were not trained on first."""
    return np.concatenate([split.test, split.validation, split.train])[:count]


def not_features(config: Config) -> tuple[str, ...]:
    """Return the columns that only say how to split: `split.column`, unless it is a time."""
    column = config.split.column
    return (column,) if column is not None and config.split.strategy != "time" else ()


def split_cells(config: Config, columns: Mapping[str, T]) -> T | None:
    """Return the cells of `split.column`, None where the config names none; DataError where there is no such column."""
    name = config.split.column
    if name is None:
        return None
    if name not in columns:
        hint = did_you_mean(name, columns)
        raise DataError(f"split.column: no column '{name}'; the columns are {', '.join(columns)}{hint}")
    return columns[name]


def deal(
    config: Config,
    schema: Schema,
    columns: Columns,
    n: int,
    assigned: np.ndarray | None,
    data: TabularData | ImageData,
    places: np.ndarray | None = None,
) -> Split:
    """Return the Split of `n` rows by the config, its notes first saying why; `assigned` is `split.column`'s cells.

    `places` [n] are what messages call the rows: i64 lines of the file, or names; without them rows are counted from 1.
    DataError where a row has no group or time.
    """
    strategy, why = config.split.strategy, ""
    if strategy is msgspec.UNSET:
        strategy, why = _default_strategy(schema, assigned)
    _check_strategy(config, schema, strategy, assigned, data, places)
    labels = encode_label(schema, columns) if schema.target.classes else None
    dealt, classes = labels, schema.target.classes
    if labels is not None and schema.target.task == "multilabel":  # each stratum is a class without a name
        dealt, classes = strata(labels), ()
    folds = fold_count(config)
    shares = (data.train_split, data.validation_split, data.test_split)
    split = split_rows(
        n,
        strategy=strategy,
        fractions=(1.0 - data.test_split, 0.0, data.test_split) if folds else shares,
        seed=config.seed,
        labels=dealt,
        classes=classes,
        assigned=assigned,
    )
    split = _in_folds(config, split, folds, strategy, dealt, assigned) if folds else split
    chosen = [f"split: {strategy}, as {why}"] if why else []
    return split._replace(notes=(*chosen, *_untaught(schema, labels, split.train), *split.notes))


def _check_strategy(
    config: Config,
    schema: Schema,
    strategy: Strategy,
    assigned: np.ndarray | None,
    data: TabularData | ImageData,
    places: np.ndarray | None,
) -> None:
    """Raise DataError where rows cannot be dealt so."""
    if strategy == "folders" and assigned is None:
        raise DataError(f"split.strategy: expected train, val and test folders in {data.path}, got none; remove it")
    if strategy in ("stratified", "group_stratified") and schema.target.task == "regression":
        why, other = schema.target.reason, "random" if strategy == "stratified" else "group"
        raise DataError(f"split.strategy: expected {other} for regression ({why}), got {strategy}; change one")
    if strategy in ("group", "group_stratified", "time") and assigned is not None:
        what = f"a {'time' if strategy == 'time' else 'group'} in every row of '{config.split.column}'"
        _refuse_gaps(assigned, what, schema.missing_markers, places)


def _in_folds(
    config: Config,
    split: Split,
    folds: int,
    strategy: Strategy,
    labels: np.ndarray | None,
    assigned: np.ndarray | None,
) -> Split:
    """Return the Split with its training rows in folds; DataError where rows are assigned to validation."""
    if len(split.validation):
        raise DataError(
            f"split.folds: expected no rows that are assigned to validation, as each fold validates, got "
            f"{len(split.validation):,} ({strategy}); move them to train, or remove split.folds"
        )
    return deal_folds(
        split,
        folds,
        seed=config.seed,
        labels=labels if strategy in ("stratified", "group_stratified", "folders") else None,
        groups=assigned if strategy in ("group", "group_stratified") else None,
    )


def _untaught(schema: Schema, labels: np.ndarray | None, train: np.ndarray) -> Iterator[str]:
    """Yield a line of classes, or labels, of which the training rows show nothing."""
    classes = schema.target.classes
    if labels is None:
        return
    if schema.target.task == "multilabel":
        if constant := one_sided(labels[train], classes):
            told = "labels that all train rows, or none, have, which cannot be learnt"
            yield f"split: {told}: {', '.join(constant)}"
        return
    taught = set(labels[train].tolist())
    if untaught := [name for i, name in enumerate(classes) if i not in taught]:
        yield f"split: classes without a training row, which cannot be learnt: {', '.join(untaught)}"


def _refuse_gaps(cells: np.ndarray, what: str, markers: tuple[str, ...], places: np.ndarray | None) -> None:
    gaps = np.flatnonzero(missing_mask(texts(cells), markers))
    if not len(gaps):
        return
    shown = gaps[:SHOWN] + 1 if places is None else places[gaps[:SHOWN]]
    unit = "row " if places is None else "line " if places.dtype.kind == "i" else ""
    more = f" and {len(gaps) - SHOWN:,} more" if len(gaps) > SHOWN else ""
    raise DataError(
        f"split.column: expected {what}, got {len(gaps):,} missing ({unit}{', '.join(map(str, shown))}{more}); "
        "fill them or remove these rows"
    )


def _default_strategy(schema: Schema, assigned: np.ndarray | None) -> tuple[Strategy, str]:
    if assigned is not None:
        return "folders", "there are folders or files for train and others"
    if schema.target.task == "classification":
        return "stratified", "the target is one of classes"
    if schema.target.task == "multilabel":
        return (
            "stratified",
            "the target is of labels: rows with the same labels, or the same rarest one, are dealt alike",
        )
    return "random", "the target is a number"
