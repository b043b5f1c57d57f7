"""Dealing whole groups of rows, so that no group (a patient, a customer, a source) is in two splits."""

from collections.abc import Sequence

import numpy as np

from mmjax.errors import DataError

FAR_FROM_SHARE = 0.05
"""Splits that miss their share of the rows by more than this are told."""


def group_codes(cells: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (i64[N] the group of each row, the groups' texts in order of appearance); texts are compared as read.

    >>> codes, groups = group_codes(np.array(["b", "a", "b"], object))
    >>> codes.tolist(), groups
    ([0, 1, 0], ('b', 'a'))
    """
    texts = list(map(str, cells.tolist()))
    known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return np.fromiter(map(known.__getitem__, texts), np.int64, len(texts)), tuple(known)


def deal_groups(
    groups: np.ndarray,
    shares: np.ndarray,
    generator: np.random.Generator,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Return the part of each row, i8[N]: rows of one group together, parts near `shares` f64[3] of all rows.

    Groups are dealt the largest first, equals in random order, each to the part that lacks most of what it holds; every
    part with a share gets a group. So a part exceeds its share by less than one group. With `labels` i32[N], what a
    part lacks is counted by class and in total, each as a share of the class (the idea of scikit-learn's
    `StratifiedGroupKFold`, with shares instead of folds). DataError with fewer groups than parts that have a share.
    """
    counts = _counts(groups, labels)
    used = np.flatnonzero(shares > 0)
    if len(counts) < len(used):
        raise DataError(
            f"split.column: expected at least {len(used)} groups, one for every part with a share, got {len(counts)}; "
            "name another column, or give parts a share of 0"
        )
    totals = counts.sum(axis=0)
    weights = np.append(1.0 / np.maximum(totals[:-1], 1) ** 2, (counts.shape[1] - 1) / totals[-1] ** 2)
    lacking = weights[:, None] * totals[:, None] * shares  # f64[K + 1, 3], of each class and of all rows
    order = generator.permutation(len(counts))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    part_of = np.empty(len(counts), np.int8)
    empty = set(used.tolist())
    for left, group in zip(range(len(order), 0, -1), order.tolist(), strict=True):
        wanted = counts[group] @ lacking
        options = sorted(empty) if left <= len(empty) else used
        part = int(options[np.argmax(wanted[options])])
        part_of[group] = part
        lacking[:, part] -= weights * counts[group]
        empty.discard(part)
    return part_of[groups]


def _counts(groups: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return f64[G, K + 1]: the rows of each group by class, and all of them; without labels there is one class."""
    number = int(groups.max(initial=-1)) + 1
    _, classes = (None, np.zeros_like(groups)) if labels is None else np.unique(labels, return_inverse=True)
    kinds = int(classes.max(initial=0)) + 1
    counts = np.bincount(groups * kinds + classes, minlength=number * kinds).reshape(number, kinds)
    return np.column_stack([counts, counts.sum(axis=1)]).astype(np.float64)


def describe_groups(groups: np.ndarray, parts: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """Return notes: the groups and rows of each part, how many groups are in two, and parts far from their share."""
    of_part = [np.unique(groups[parts == part]) for part in range(3)]
    rows = np.bincount(parts, minlength=3)
    listed = ", ".join(
        f"{len(found):,} groups ({count:,} rows) in {name}"
        for found, count, name in zip(of_part, rows, names, strict=True)
    )
    twice = sum(len(found) for found in of_part) - len(np.unique(groups))
    notes = [f"split: {listed}; {twice} groups in two splits"]
    realised = rows / len(parts)
    if (np.abs(realised - shares) > FAR_FROM_SHARE).any():
        wanted, got = (" ".join(f"{share:.2f}" for share in found) for found in (shares, realised))
        largest = np.bincount(groups).max()
        notes.append(
            f"split: groups are too large for the shares {wanted}: got {got} (the largest group has {largest:,} rows)"
        )
    return tuple(notes)
