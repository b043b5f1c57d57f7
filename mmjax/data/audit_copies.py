"""Copies: rows and files that are there twice, within a split, across splits, with one answer or with several.

A coarse table, of a few columns with a few values each, has equal rows by chance. Its columns are dealt to two halves;
if these were independent, two rows would agree in both with the product of the probabilities that they agree in each.
Copies of rows are told only where there are clearly more than that.
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mmjax.data.audit_rows import (
    MEMBERS,
    SHOWN,
    Copies,
    Rows,
    bits,
    copies,
    counted,
    finding,
    hash_cells,
    kept_together,
    mix,
    named,
    noun,
    one_answer,
    parts_of,
    place,
    places,
    sample,
)
from mmjax.data.labels import said
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS

CHANCE_ROWS = 20_000
"""Rows from which the number of equal pairs by chance is estimated."""
BEYOND_CHANCE = 3.0
"""Columns that depend on each other make so many times more equal pairs than estimated, or fewer."""
DEALINGS = 3
FALSE_ALARMS = 0.005
"""Probability that copies by chance are told."""


class _Where(NamedTuple):
    """Where the copies are: `counts` i64[G, 3] rows of each group in each split."""

    copies: Copies
    counts: np.ndarray
    within: np.ndarray
    """i64[3]: rows with an earlier copy in their split."""
    across: dict[tuple[int, int], int]
    """Rows of the second split with a copy in the first, where there are any."""
    total: int
    """Rows with an earlier copy anywhere."""


def copy_findings(rows: Rows) -> list[Finding]:
    """Return what is known of exact copies: duplicates, overlap and conflicts."""
    parts = parts_of(rows)
    others = _other_columns(rows)
    found = []
    exact = _where(copies(rows.row_keys), parts)
    if exact.total and not (_coarse(rows) and _by_chance(rows, exact.total, answers=True)):
        found += _findings(rows, parts, exact, "exact copies")
    if others:
        found += _same_but_for(rows, parts, exact, others)
    return found + _conflicts(rows)


def group_findings(rows: Rows) -> list[Finding]:
    """Return the groups that have rows in two splits, where the split promises that there are none."""
    if rows.groups is None:
        return []
    parts = parts_of(rows)
    where = _where(copies(hash_cells({"group": rows.groups}, ["group"])), parts)
    torn = np.flatnonzero((where.counts > 0).sum(axis=1) > 1)
    if not len(torn):
        return []
    first = where.copies.rows[np.searchsorted(where.copies.group, torn[:SHOWN])]
    examples = [
        f"{rows.groups[row]}: {', '.join(f'{n:,} {part}' for n, part in zip(counts, PARTS, strict=True) if n)}"
        for row, counts in zip(first, where.counts[torn], strict=False)
    ]
    what = f"{counted(len(torn), 'group')} with rows in more than one split"
    return [finding("overlap", what, len(torn), examples, "give all rows of a group to one split")]


def _other_columns(rows: Rows) -> list[str]:
    """Return the columns that tell rows apart but are no feature: identifiers, free text, ignored ones."""
    schema = rows.schema
    target = (*schema.target.columns, schema.id_column)
    return [c.name for c in schema.of_kind("identifier", "text", "ignored") if c.name not in target]


def _coarse(rows: Rows) -> bool:
    """Return whether rows may be equal by chance: there are columns, and none of them hardly repeats its cells."""
    telling = [c for c in rows.schema.of_kind("identifier", "text") if c.name != rows.schema.id_column]
    return bool(rows.schema.features) and not telling


def _where(found: Copies, parts: np.ndarray) -> _Where:
    dealt = parts[found.rows]
    inside = dealt >= 0
    places = found.group[inside] * 3 + dealt[inside]
    counts = np.bincount(places, minlength=3 * found.groups).reshape(-1, 3)
    across = {
        (a, b): int(counts[counts[:, a] > 0, b].sum())
        for a, b in combinations(range(3), 2)
        if (counts[:, [a, b]] > 0).all(axis=1).any()
    }
    within = np.clip(counts - 1, 0, None).sum(axis=0)
    total = int(np.clip(counts.sum(axis=1) - 1, 0, None).sum())
    return _Where(found, counts, within, across, total)


def _findings(rows: Rows, parts: np.ndarray, where: _Where, what: str) -> list[Finding]:
    """Return the duplicates and the overlap of these copies."""
    found, thing = [], noun(rows)
    within = int(where.within.sum())
    if within:
        listed = ", ".join(f"{n:,} {part}" for n, part in zip(where.within, PARTS, strict=True) if n)
        whole = f"; {where.total:,} in all, across splits too" if where.total > within else ""
        said = f"{what} within a split: {counted(within, thing)} ({listed}){whole}"
        examples = _examples(rows, parts, where, (where.counts > 1).any(axis=1))
        found.append(finding("duplicates", said, within, examples, f"remove them unless the {thing}s truly repeat"))
    if where.across:
        listed = ", ".join(
            f"{counted(n, f'{PARTS[b]} {thing}')} also in {PARTS[a]}" for (a, b), n in where.across.items()
        )
        apart = (where.counts > 0).sum(axis=1) - 1
        examples = _examples(rows, parts, where, apart > 0)
        together = kept_together(rows, "add a column that numbers equal rows and keep these together")
        advice = f"scores on them are too good: remove the copies, or {together}"
        total = int(np.clip(apart, 0, None).sum())
        told = finding("overlap", f"{what} across splits: {listed}", total, examples, advice)
        found.append(told._replace(leaked=_leaked(parts, where)))
    return found


def _leaked(parts: np.ndarray, where: _Where) -> tuple[int, ...]:
    """Return the test rows with a copy among the training rows."""
    rows, group = where.copies.rows, where.copies.group
    of_train = where.counts[:, PARTS.index("train")] > 0
    return tuple(np.sort(rows[of_train[group] & (parts[rows] == PARTS.index("test"))]).tolist())


def _examples(rows: Rows, parts: np.ndarray, where: _Where, groups: np.ndarray) -> list[str]:
    chosen = np.flatnonzero(groups)[:SHOWN]
    starts = np.searchsorted(where.copies.group, [chosen, chosen + 1])
    return [places(rows, where.copies.rows[start:stop].tolist(), parts) for start, stop in starts.T]


def _same_but_for(rows: Rows, parts: np.ndarray, exact: _Where, others: list[str]) -> list[Finding]:
    """Return the rows that agree in features and answer, where the columns without use differ."""
    keys = mix(rows.feature_keys, bits(one_answer(np.asarray(rows.batch["label"]))))
    equal = _where(copies(keys), parts)
    if equal.total <= exact.total or _by_chance(rows, equal.total, answers=True):
        return []
    alike = copies(rows.row_keys)
    same = np.zeros(len(rows.names), bool)
    same[alike.rows[1:][alike.group[1:] == alike.group[:-1]]] = True  # told already as exact copies
    kept = ~same[equal.copies.rows]
    rest = Copies(equal.copies.rows[kept], equal.copies.group[kept])
    sizes = np.bincount(rest.group, minlength=equal.copies.groups)
    several = sizes[rest.group] > 1
    numbers = np.unique(rest.group[several], return_inverse=True)[1]
    where = _where(Copies(rest.rows[several], numbers), parts)
    return _findings(rows, parts, where, f"equal in all features and the answer, though not in {named(others)},")


def _by_chance(rows: Rows, count: int, *, answers: bool) -> bool:
    """Return whether chance explains so many copies (with `answers`, copies in the answer too).

    Their number is about Poisson distributed, with at most BEYOND_CHANCE times the estimated mean. Files of the same
    bytes are no chance: where every row has an image, nothing is.
    """
    if "image_present" in rows.batch and np.asarray(rows.batch["image_present"]).any(axis=1).all():
        return False
    mean = BEYOND_CHANCE * _pairs_by_chance(rows, answers=answers)
    if count <= mean:
        return True
    log_probability = count * math.log(mean) - mean - math.lgamma(count + 1) - math.log1p(-mean / (count + 1))
    return log_probability > math.log(FALSE_ALARMS)


def _pairs_by_chance(rows: Rows, *, answers: bool) -> float:
    """Return how many pairs of rows would agree if two halves of the columns were independent: the largest of three."""
    total = len(rows.names)
    chosen = sample(np.arange(total), CHANCE_ROWS)
    columns = _feature_columns(rows, chosen)
    if answers:
        columns.append(one_answer(np.asarray(rows.batch["label"][chosen])))
    codes = [bits(column) for column in columns]
    coarse_first = np.argsort([-_agreement(column) for column in codes])
    halves = [(np.arange(len(codes)) >> dealing) % 2 for dealing in range(DEALINGS)]
    probability = max(
        _agreement_in([codes[i] for i in coarse_first[half == 0]])
        * _agreement_in([codes[i] for i in coarse_first[half == 1]])
        for half in halves
        if half.any() or len(codes) == 1
    )
    return probability * total * (total - 1) / 2


def _agreement_in(columns: list[np.ndarray]) -> float:
    """Return the share of pairs of rows that agree in all columns u64[n]; at least the least that can be seen."""
    if not columns:
        return 1.0
    keys = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        keys = mix(keys, column)
    return max(_agreement(keys), 1 / max(1, len(keys) * (len(keys) - 1)))


def _feature_columns(rows: Rows, chosen: np.ndarray) -> list[np.ndarray]:
    """Return the values of each feature column in these rows; of a date its days."""
    schema, columns = rows.schema, []
    if "numeric" in rows.batch:
        numbers = np.asarray(rows.batch["numeric"][chosen])
        columns += [numbers[:, i] for i in range(numbers.shape[1]) if i not in schema.cyclic_features]
    if "category" in rows.batch:
        columns += list(np.asarray(rows.batch["category"][chosen]).T)
    return columns


def _agreement(keys: np.ndarray) -> float:
    """Return the share of pairs of rows with equal keys u64[N]."""
    counts = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum()) / max(1, len(keys) * (len(keys) - 1))


def _conflicts(rows: Rows) -> list[Finding]:
    """Return the copies in all features (or of one file) that have different answers."""
    found = copies(rows.feature_keys)
    if not found.groups:
        return []
    label = one_answer(np.asarray(rows.batch["label"])[found.rows])
    starts = np.flatnonzero(np.diff(found.group, prepend=-1))
    torn = np.flatnonzero(np.maximum.reduceat(label, starts) != np.minimum.reduceat(label, starts))
    kept = np.isin(found.group, torn)
    count, classes = int(kept.sum()), rows.schema.target.classes
    if not count or (rows.schema.features and _by_chance(rows, count - len(torn), answers=False)):
        return []
    examples = []
    for group in torn[:SHOWN]:
        members = _one_of_each(found.rows[found.group == group], label[found.group == group])
        examples.append(" vs ".join(f"{place(rows, row)}: {answer(rows, row)}" for row in members))
    kind = "labels" if classes else "targets"
    same = "the same file" if noun(rows) == "image" else "equal in all features"
    what = f"{same} but with different {kind}: {counted(count, noun(rows))} in {counted(len(torn), 'group')}"
    missing = "" if noun(rows) == "image" else ", or a feature that tells them apart is missing"
    return [finding("conflicts", what, count, examples, f"one of the {kind} is wrong{missing}")]


def _one_of_each(members: np.ndarray, label: np.ndarray) -> list[int]:
    """Return the first row of each label, at most so many as are named of a group."""
    first = np.sort(np.unique(label, return_index=True)[1])
    return members[first[:MEMBERS]].tolist()


def answer(rows: Rows, row: int) -> str:
    """Return the class, labels or target of a row as text."""
    found, target = np.asarray(rows.batch["label"][row]).reshape(-1), rows.schema.target
    if target.labels:
        return said(found, target.classes)
    value = found[0]
    return target.classes[int(value)] if target.classes else f"{float(value) + target.offset:g}"
