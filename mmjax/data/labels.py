"""Several yes/no labels for each row: how their columns are understood, and the strata by which rows are dealt."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mmjax.data.survey import Seen
from mmjax.errors import DataError
from mmjax.schema import Label, Target

SHOWN = 5
"""How many texts or lines a message names."""
FEWEST_ROWS = 10
"""Rows with one combination of labels from which on it is dealt by itself."""


class InferClasses(Protocol):
    """`infer_target` of one column that is classified."""

    def __call__(self, seen: Seen, column: str) -> Target:
        """Return its Target."""
        ...


def infer_labels(
    seen: Mapping[str, Seen],
    columns: Sequence[str],
    classes_of: InferClasses,
    *,
    positive_class: str | None,
    lines: np.ndarray | None,
) -> Target:
    """Return the Target of these columns, each of two values: of a binary target the second in order is the positive.

    With `positive_class` that text means yes in each of them. DataError with everything wrong in all columns: missing
    cells, one value only, or more than two, which are named with their places.
    """
    labels, problems = [], []
    for column in columns:
        try:
            classes = classes_of(seen[column], column).classes
        except DataError as error:
            problems += error.problems
            continue
        if len(classes) != 2:
            problems.append(_not_two(column, classes, seen[column], lines))
        elif positive_class is not None and positive_class not in classes:
            told = f"expected one of the values of every label, got '{positive_class}'; '{column}' holds"
            problems.append(f"positive_class: {told} {classes[0]!r} and {classes[1]!r}")
        else:
            positive = positive_class or classes[1]
            negative = next(text for text in classes if text != positive)
            labels.append(Label(column=column, negative=negative, positive=positive))
    if problems:
        raise DataError(problems)
    reason = f"{len(columns)} columns of two values, labels of which any number hold"
    names = tuple(columns)
    return Target(column=", ".join(names), task="multilabel", classes=names, labels=tuple(labels), reason=reason)


def _not_two(column: str, classes: Sequence[str], seen: Seen, lines: np.ndarray | None) -> str:
    """Return what is wrong with a column of more than two values: the rarest of them, with their first places."""
    texts, codes = seen.vocabulary()
    rows = codes.read()
    present = [i for i, text in enumerate(texts.tolist()) if text in classes]
    counts = np.bincount(rows, minlength=len(texts))
    rarest = sorted(present, key=lambda i: (counts[i], i))[: min(len(present) - 2, SHOWN)]
    unit = "row" if lines is None else "line"
    first = {i: int(np.argmax(rows == i)) for i in rarest}
    at = ", ".join(f"{texts[i]!r} ({unit} {row + 1 if lines is None else lines[row]})" for i, row in first.items())
    common = " and ".join(repr(texts[i]) for i in sorted(present, key=lambda i: (-counts[i], i))[:2])
    return (
        f"label column '{column}': expected two values, as 0 and 1 or no and yes, got {len(classes)}: besides {common} "
        f"also {at}{' ...' if len(present) > SHOWN + 2 else ''}; mend these cells, or leave the column out of "
        "target_column"
    )


def strata(labels: np.ndarray) -> np.ndarray:
    """Return the stratum of each row, i32[N], of `labels [N, L]` of 0 and 1: rows of one stratum are to be dealt alike.

    Rows with the same labels are one stratum where they are `FEWEST_ROWS` or more (the label powerset of Sechidis et
    al., ECML 2011, section 3.1); a row with a rarer combination goes with those that share its rarest label, and one
    that is alone with the largest stratum. So each label keeps its share in every part, nearly.
    """
    held = np.asarray(labels) > 0
    _, combination, counts = np.unique(held, axis=0, return_inverse=True, return_counts=True)
    combination = combination.reshape(-1)
    rare = counts[combination] < FEWEST_ROWS
    by_rarity = np.argsort(held.sum(axis=0), kind="stable")
    rarest = np.where(held.any(axis=1), by_rarity[held[:, by_rarity].argmax(axis=1)], held.shape[1])
    found = np.where(rare, len(counts) + rarest, combination)
    _, place, rows = np.unique(found, return_inverse=True, return_counts=True)
    return np.where(rows[place] > 1, place, rows.argmax()).astype(np.int32)


def one_sided(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return the names of the labels that hold for all of these rows, or for none."""
    return [name for name, column in zip(names, labels.T, strict=True) if (column == column[0]).all()]


def said(row: np.ndarray, names: Sequence[str]) -> str:
    """Return the labels that hold in a row `[L]` of 0 and 1, in words.

    >>> said(np.array([1, 0, 1]), ("urgent", "spam", "bill")), said(np.array([0, 0, 0]), ("urgent", "spam", "bill"))
    ('urgent, bill', 'none')
    """
    return ", ".join(name for name, value in zip(names, row.tolist(), strict=True) if value) or "none"
