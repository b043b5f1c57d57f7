"""Columns that teach nothing, columns that are not what they seem, and classes that are hard to learn."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.audit_labels import label_findings
from mmjax.data.audit_rows import BLOCK_ROWS, SHOWN, Rows, counted, finding, named, noun, place, sample
from mmjax.data.cells import floats
from mmjax.data.kinds import SCHEMA_TOO
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS
from mmjax.schema import Column, Schema

COLUMN_ROWS = 20_000
"""Rows from which it is judged which columns deserve a closer look."""
NEARLY_CONSTANT = 0.001
"""Share of rows that differ from the most frequent value, up to which a column is nearly constant."""
FEWEST_ROWS = 100
IMBALANCE = 10.0
"""Times that the largest class is larger than the smallest."""
FEW_ROWS = 10
"""A class with fewer training rows is hard to learn."""
SAME_BY_CHANCE = 1e-9
_NUMBERS_BUT = re.compile(r"all but (\d+) of its values are numbers: (.*?); mend them")

_WRITTEN = re.compile(r"looks like numbers written (.*): write them")


def column_findings(rows: Rows) -> list[Finding]:
    """Return columns that are constant, nearly so, identifiers, nearly numeric, or say the same as another."""
    schema = rows.schema
    constant = [c.name for c in schema.of_kind("constant")]
    identifiers = [c.name for c in schema.of_kind("identifier") if c.name != schema.id_column and not _doubtful(c)]
    found = []
    if constant:
        what = f"left out, as they hold one value: {counted(len(constant), 'column')}, {named(constant)}"
        found.append(finding("columns", what, len(constant), _reasons(rows, constant), "put them in ignore_columns"))
    if identifiers:
        what = f"left out, as they only identify rows: {counted(len(identifiers), 'column')}, {named(identifiers)}"
        advice = "name one of them id_column, put the others in ignore_columns"
        found.append(finding("columns", what, len(identifiers), _reasons(rows, identifiers), advice))
    found += [*_written_numbers(rows), *_nearly_numeric(rows)]
    if len(rows.names) >= FEWEST_ROWS and schema.features:
        found += [*_nearly_constant(rows), *_same(rows)]
    return found


def told_columns(schema: Schema) -> frozenset[str]:
    """Return the columns that `column_findings` says are left out and why, so that nothing else need say it again."""
    of_rows = (c for c in schema.of_kind("constant", "identifier", "text") if c.name != schema.id_column)
    return frozenset(c.name for c in of_rows if c.kind != "text" or _doubtful(c))


def _doubtful(column: Column) -> bool:
    """Return whether the column is of texts that have a finding of their own, as they are nearly numbers."""
    return bool(_NUMBERS_BUT.search(column.reason) or _WRITTEN.search(column.reason))


def _left_out(column: Column) -> str:
    """Return the column's name in quotes, and that it is left out where it is."""
    return f"'{column.name}'{', left out' if column.kind in ('text', 'identifier') else ''}"


def _reasons(rows: Rows, names: list[str]) -> Iterator[str]:
    return (f"'{name}': {rows.schema.column(name).reason}" for name in names)


def _written_numbers(rows: Rows) -> list[Finding]:
    """Return the columns of text whose cells are numbers written for people."""
    said = [(c, _WRITTEN.search(c.reason)) for c in rows.schema.of_kind("categorical", "text", "identifier")]
    found = [(column, match.group(1)) for column, match in said if match]
    if not found:
        return []
    what = f"text that looks like numbers: {counted(len(found), 'column')}, {named(c.name for c, _ in found)}"
    examples = [f"{_left_out(column)}: {written}" for column, written in found]
    advice = f"write them with a point and no separators or signs to learn from them as numbers{SCHEMA_TOO}"
    return [finding("columns", what, len(found), examples, advice)]


def _nearly_numeric(rows: Rows) -> list[Finding]:
    """Return the columns of text of which a few cells only are no numbers."""
    found = [c for c in rows.schema.of_kind("categorical", "text", "identifier") if _NUMBERS_BUT.search(c.reason)]
    if not found:
        return []
    what = f"numbers but for a few cells: {counted(len(found), 'column')} of text, {named(c.name for c in found)}"
    examples = [example for column in found for example in _odd_cells(rows, column)]
    advice = f"mend these cells or add their texts to missing_markers{SCHEMA_TOO}"
    return [finding("columns", what, len(found), examples, advice)]


def _odd_cells(rows: Rows, column: Column) -> Iterator[str]:
    """Yield where a category holds a text that is no number; of other columns, the texts alone are known."""
    odd = np.flatnonzero(np.isnan(floats(column.vocabulary))) if column.vocabulary else []
    if not len(odd):
        said = _NUMBERS_BUT.search(column.reason)
        yield f"{_left_out(column)}: {said.group(2) if said else ''}"
        return
    at = rows.schema.category_columns.index(column)
    for code in odd[:3]:
        members = np.flatnonzero(np.asarray(rows.batch["category"][:, at]) == code + 1)
        first = ", ".join(place(rows, row) for row in members[:3])
        yield f"'{column.name}': {column.vocabulary[code]!r} in {counted(len(members), noun(rows))} ({first})"


def _features(rows: Rows) -> Iterator[tuple[str, str, int]]:
    """Yield (column, array of the batch, place in it) of each feature; of a date its days only."""
    schema = rows.schema
    for i, column in enumerate((*schema.of_kind("numeric"), *schema.of_kind("datetime"))):
        dates = i - len(schema.of_kind("numeric"))
        yield column.name, "numeric", i if dates < 0 else i + 3 * dates
    for i, column in enumerate(schema.category_columns):
        yield column.name, "category", i


def _nearly_constant(rows: Rows) -> list[Finding]:
    total, found = len(rows.names), []
    chosen = sample(np.arange(total), COLUMN_ROWS)
    for name, field, i in _features(rows):
        values = np.asarray(rows.batch[field][chosen, i])
        distinct, counts = np.unique(values, return_counts=True)
        if counts.max() < 0.99 * len(values):
            continue
        others = _others(rows, field, i, distinct[counts.argmax()])
        if 0 < len(others) <= max(1, NEARLY_CONSTANT * total):
            found.append((name, others))
    if not found:
        return []
    what = f"nearly constant: {counted(len(found), 'column')}, {named(name for name, _ in found)}"
    whole = counted(total, noun(rows))
    examples = [
        f"'{name}': {len(rest):,} of {whole} differ ({', '.join(place(rows, row) for row in rest[:3])})"
        for name, rest in found
    ]
    return [finding("columns", what, len(found), examples, "they teach little: put them in ignore_columns")]


def _others(rows: Rows, field: str, i: int, usual: float) -> np.ndarray:
    """Return the rows whose value is not the usual one, read block by block."""
    found = []
    for start in range(0, len(rows.names), BLOCK_ROWS):
        block = np.asarray(rows.batch[field][start : start + BLOCK_ROWS, i])
        differs = ~np.isnan(block) if usual != usual else block != usual
        found.append(np.flatnonzero(differs) + start)
    return np.concatenate(found)


def _same(rows: Rows) -> list[Finding]:
    """Return columns that say the same as another: each value of one goes with one value of the other."""
    chosen = sample(np.arange(len(rows.names)), COLUMN_ROWS)
    first: dict[bytes, str] = {}
    found = []
    for name, field, i in _features(rows):
        forms = [form.tobytes() for form in _forms(np.asarray(rows.batch[field][chosen, i]))]
        known = next((first[form] for form in forms if form in first), None)
        if known is not None:
            found.append((known, name))
        first |= {form: name for form in forms if form not in first}
    if not found:
        return []
    what = f"say the same as another: {counted(len(found), 'column')}, {named(name for _, name in found)}"
    examples = [f"'{name}' and '{known}': each value of one goes with one value of the other" for known, name in found]
    return [finding("columns", what, len(found), examples, "one of each is enough: put the other in ignore_columns")]


def _forms(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield i32[n] that columns share which say the same: of few values as they appear, of many in order, both ways."""
    _, first, codes, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    orders = math.lgamma(len(values) + 1) - sum(map(math.lgamma, (counts + 1.0).tolist()))
    if orders < -math.log(SAME_BY_CHANCE):
        return  # so few differ that columns agree by chance
    if 2 * len(counts) <= len(values):
        yield np.argsort(np.argsort(first)).astype(np.int32)[codes]
    else:
        yield codes.astype(np.int32)
        yield (len(counts) - 1 - codes).astype(np.int32)


def class_findings(rows: Rows) -> list[Finding]:
    """Return classes that differ by case or blanks alone, have few training rows or none to test, and imbalance."""
    classes, label = rows.schema.target.classes, rows.batch["label"]
    if not classes:
        return []
    if rows.schema.target.labels:
        return label_findings(rows)
    found = _same_but_for_case(classes)
    counts = np.stack([np.bincount(label[part], minlength=len(classes)) for part in rows.split[:3]])
    train, total = counts[0], counts.sum(axis=0)
    few = np.flatnonzero(train < FEW_ROWS)
    if len(few):
        what = f"fewer than {FEW_ROWS} train {noun(rows)}s: {len(few)} of {len(classes)} classes"
        examples = [f"{classes[i]}: {train[i]:,}" for i in few[np.argsort(train[few], kind="stable")]]
        found.append(finding("classes", what, len(few), examples, "gather more of them, or merge or remove classes"))
    for i, part in enumerate(PARTS[1:], 1):
        absent = np.flatnonzero((counts[i] == 0) & (total > 0))
        if counts[i].any() and len(absent):
            what = f"no {part} {noun(rows)}: {len(absent)} of {len(classes)} classes, of which {part} tells nothing"
            names = (classes[j] for j in absent[:SHOWN])
            found.append(finding("classes", what, len(absent), names, f"gather more of them, or enlarge {part}"))
    present = train[train > 0]
    if len(present) > 1 and train.max() >= IMBALANCE * present.min():
        found.append(_imbalance(rows, train))
    return found


def _same_but_for_case(classes: Sequence[str]) -> list[Finding]:
    """Return the classes whose names are one but for upper and lower case and blanks around them."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.strip().casefold(), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return []
    many = sum(map(len, groups))
    what = f"differ by case or blanks around them alone: {many} of {len(classes)} classes"
    examples = (" and ".join(map(repr, names)) for names in groups)
    advice = "they are told apart: write them one way in the data if they mean the same"
    return [finding("classes", what, len(groups), examples, advice)]


def _imbalance(rows: Rows, train: np.ndarray) -> Finding:
    classes = rows.schema.target.classes
    small = np.flatnonzero((train > 0) & (IMBALANCE * train <= train.max()))
    most = int(train.argmax())
    ratio = train.max() / train[small].min()
    share = train.max() / train.sum()
    what = (
        f"classes are imbalanced {ratio:,.0f} to 1: always answering '{classes[most]}' is right for {share:.1%} "
        f"of the train {noun(rows)}s"
    )
    ordered = small[np.argsort(train[small], kind="stable")]
    examples = [f"{classes[i]}: {train[i]:,} of {train.sum():,}" for i in ordered]
    advice = "judge by balanced accuracy or f1_macro, try training.class_weights: balanced"
    return finding("classes", what, len(small), examples, advice)
