"""Columns that give the target away, alone.

Training rows are sorted by one column, ties in random order. Where the column says nothing, the answers of neighbours
differ as often as those of any two rows; where it determines them, hardly ever. For numbers as targets the difference
is that of ranks, which is Chatterjee's coefficient (A New Coefficient of Correlation, JASA 2021): 1 where the target is
any function of the column, monotone or not. The same sum over neighbours with an equal value alone tells categories
that have one answer each.
"""

from typing import NamedTuple, assert_never

import numpy as np

from mmjax.data.audit_rows import Rows, counted, finding, hash_cells, named, sample
from mmjax.data.prepared import Finding
from mmjax.schema import DATETIME_PARTS

LEAK_ROWS = 50_000
"""Training rows looked at."""
FEWEST_ROWS = 50
EVIDENCE = 30.0
"""Differing neighbours expected by chance, below which nothing is said."""
CLASS_TOLERANCE, RANK_TOLERANCE = 0.01, 0.05
"""Share of the differences expected by chance that a leak may leave; 0.05 is a rank correlation of about 0.999."""
FEWEST_MISSING = 20


class _Answers(NamedTuple):
    """The answers of the rows looked at."""

    values: np.ndarray
    """i64[n]: classes, or ranks of the target."""
    regression: bool
    expected: float
    """Mean difference of two rows at random: of classes 0 or 1, else of ranks."""
    slack: float
    """Sum of differences along the rows when they are sorted by their answer."""


def leak_findings(rows: Rows) -> list[Finding]:
    """Return the columns that alone determine the target in the training rows, or whose missing cells do."""
    chosen = _apart(rows, sample(rows.split.train, LEAK_ROWS))
    columns = _columns(rows, chosen)
    if len(chosen) < FEWEST_ROWS or not columns:
        return []
    found = [
        (name, f"{said}{of}")
        for of, answers in _answers(rows, chosen)
        for name, column in columns
        if (said := _leak(column, answers))
    ]
    if not found:
        return []
    names = list(dict.fromkeys(name for name, _ in found))
    what = f"give the target away: {counted(len(names), 'column')}, {named(names)} (seen in {len(chosen):,} train rows)"
    advice = "a value that is known only once the answer is belongs in ignore_columns"
    return [finding("leaks", what, len(names), (f"'{name}': {said}" for name, said in found), advice)]


def _apart(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """Return the rows without copies, and one of each group: they agree with themselves."""
    keys = [rows.feature_keys[chosen]]
    if rows.groups is not None:
        keys.append(hash_cells({"group": rows.groups[chosen]}, ["group"]))
    for key in keys:
        first = np.sort(np.unique(key, return_index=True)[1]) if len(key) == len(chosen) else np.arange(len(chosen))
        chosen = chosen[first]
    return chosen


def _columns(rows: Rows, chosen: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return name and values of each feature in these rows: f32[n] with NaN, or codes i32[n] as they are."""
    schema, columns = rows.schema, []
    if "numeric" in rows.batch:
        numbers = np.asarray(rows.batch["numeric"][chosen])
        columns += zip(map(_plain_name, schema.numeric_features), numbers.T, strict=True)
    if "category" in rows.batch:
        codes = np.asarray(rows.batch["category"][chosen])
        columns += zip((column.name for column in schema.category_columns), codes.T, strict=True)
    return columns


def _plain_name(feature: str) -> str:
    return feature.removesuffix(f".{DATETIME_PARTS[0]}")


def _answers(rows: Rows, chosen: np.ndarray) -> list[tuple[str, _Answers]]:
    """Return the answers, of several labels each in turn, with what a message says of whose they are."""
    label, target = np.asarray(rows.batch["label"][chosen]), rows.schema.target
    match target.task:
        case "classification":
            return [("", _of_classes(label, len(target.classes)))]
        case "multilabel":
            return [(f" (label '{name}')", _of_classes(label[:, i], 2)) for i, name in enumerate(target.classes)]
        case "regression":
            return [("", _of_numbers(label[:, 0]))]
        case _:
            assert_never(target.task)


def _of_classes(label: np.ndarray, classes: int) -> _Answers:
    counts = np.bincount(label, minlength=classes).astype(np.float64)
    differing = 1 - float((counts**2).sum()) / len(label) ** 2
    return _Answers(label.astype(np.int64), False, differing, float((counts > 0).sum() - 1))


def _of_numbers(target: np.ndarray) -> _Answers:
    n = len(target)
    ordered = np.sort(target)
    ranks = np.searchsorted(ordered, target, side="right")
    above = (n - np.searchsorted(ordered, target, side="left")).astype(np.float64)
    return _Answers(ranks, True, 2 * float((above * (n - above)).sum()) / n**2, float(np.ptp(ranks)))


def _leak(column: np.ndarray, answers: _Answers) -> str:
    """Return how the column gives the target away, or an empty string."""
    order = np.argsort(column, kind="stable")
    values, sorted_answers = column[order], answers.values[order]
    differences = np.abs(np.diff(sorted_answers)) if answers.regression else np.diff(sorted_answers) != 0
    tied = (values[1:] == values[:-1]) | ((values[1:] != values[1:]) & (values[:-1] != values[:-1]))
    distinct, ties = len(values) - int(tied.sum()), int(tied.sum())
    tolerance = RANK_TOLERANCE if answers.regression else CLASS_TOLERANCE
    unit = 1.0 if answers.regression else answers.expected
    repeats = 2 * ties >= len(values) and ties * unit >= EVIDENCE and distinct > 1
    if repeats and differences[tied].sum() <= tolerance * ties * answers.expected:
        return f"each of its {distinct:,} values has one answer"
    allowed = tolerance * len(differences) * answers.expected + answers.slack
    if len(values) * unit >= EVIDENCE and ties < len(differences) and differences.sum() <= allowed:
        return "sorted by it, the rows are sorted by their answer, or nearly"
    return _missing_leak(column, answers)


def _missing_leak(column: np.ndarray, answers: _Answers) -> str:
    """Return how missing cells alone give the target away, or an empty string."""
    missing = np.isnan(column) if column.dtype.kind == "f" else column == 0
    count = int(missing.sum())
    if min(count, len(missing) - count) < FEWEST_MISSING:
        return ""
    inside, outside = answers.values[missing], answers.values[~missing]
    if answers.regression:
        apart = inside.max() < outside.min() or outside.max() < inside.min()
        return f"its {count:,} missing cells are the rows with the largest or smallest targets" if apart else ""
    common = np.bincount(inside).argmax()
    members = int((answers.values == common).sum())
    share = (inside == common).sum()
    evident = count * -np.log(members / len(missing)) >= EVIDENCE if members else False
    if share < (1 - CLASS_TOLERANCE) * max(count, members) or not evident:
        return ""
    return f"it is missing in the rows of one class and in no others ({count:,} rows)"
