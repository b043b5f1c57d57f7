"""Every row against the rules of the Schema; what breaks one is refused, dropped or reported, never silently.

What each policy does with such rows is told in `mmjax.data.quarantine`.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, assert_never

import msgspec
import numpy as np

from mmjax.config import Policy
from mmjax.data.cells import BOOLEAN_PAIRS, missing_mask, parse_dates, parse_numbers, texts
from mmjax.data.table import Table
from mmjax.errors import DataError
from mmjax.schema import Column, Columns, Schema

SHOWN = 20
"""How many violations are listed; the others are counted."""
LONGEST = 80
"""Characters of a cell that a message shows."""
_BOOLEANS = frozenset(word for pair in BOOLEAN_PAIRS for word in pair)


class Violation(NamedTuple):
    """A cell that breaks a rule: its row (from 0), line in the file, column, value, and the rule in words."""

    row: int
    line: int
    column: str
    value: str
    rule: str
    readable: bool
    """True where the cell can be encoded all the same."""


class Validation(NamedTuple):
    """The rows to `keep` (bool[N]), every violation by line, and notes that count what was dropped or left in."""

    keep: np.ndarray
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]


class Broken(NamedTuple):
    """How many cells break a rule, and the first line with one."""

    cells: int
    line: int


BrokenRules = dict[tuple[str, str], Broken]
"""What breaks a rule, by column and the rule in words."""


class Fault(NamedTuple):
    """The cells of a column that break one rule."""

    rows: np.ndarray
    """i64[M], ascending."""
    column: str
    values: list[str]
    """The cells of these rows."""
    rule: str
    readable: bool
    """True where these cells can be encoded all the same."""


class _Rule(NamedTuple):
    broken: np.ndarray
    words: str
    readable: bool = True


def validate_rows(columns: Columns, schema: Schema, lines: np.ndarray, path: str, policy: Policy) -> Validation:
    """Return which rows obey the Schema: required cells, types, enums, minima, maxima, patterns, known classes.

    Columns that are absent are passed over. A cell breaks at most one rule, the first of these. Policy `fail`:
    DataError with file, line, column, rule and value of the first 20 violations. `drop` keeps none of these rows,
    `report` keeps those whose cells can all be encoded; DataError when no row, or a single class, is left.
    """
    return judge(_faults(columns, schema), columns.get(schema.target.column), schema, lines, path, policy)


def judge(
    faults: list[Fault], targets: np.ndarray | None, schema: Schema, lines: np.ndarray, path: str, policy: Policy
) -> Validation:
    """Return what `validate_rows` does of rows with these faults.

    `targets` [N] are the cells of the target column, to tell of classes that lose all rows; None passes it over.
    """
    if not faults:
        return Validation(np.ones(len(lines), dtype=bool), (), ())
    match policy:
        case "fail":
            raise DataError(_listed(faults, lines, path))
        case "drop":
            keep = ~_rows_of(faults, len(lines))
        case "report":
            keep = ~_rows_of([fault for fault in faults if not fault.readable], len(lines))
        case _:
            assert_never(policy)
    fate = f"{path}: {_fate(faults, keep)}"
    lost, left = _classes_left(targets, schema, keep)
    if not keep.any():
        fate = f"{path}: every row violates the schema; none is left"
    if not keep.any() or (lost and len(left) == 1):
        single = f"; a single class is left: {left[0]!r}" if left else ""
        raise DataError([*_listed(faults, lines, path), fate + single])
    gone = (f"{path}: no row is left of the classes {', '.join(map(repr, lost))}",) if lost else ()
    return Validation(keep, _violations(faults, lines), (fate, *_in_counts(_counted(faults, lines)), *gone))


def _violations(faults: list[Fault], lines: np.ndarray) -> tuple[Violation, ...]:
    found = (
        Violation(row, int(lines[row]), fault.column, value, fault.rule, fault.readable)
        for fault in faults
        for row, value in zip(fault.rows.tolist(), fault.values, strict=True)
    )
    return tuple(sorted(found))


def _rows_of(faults: list[Fault], rows: int) -> np.ndarray:
    """Return bool[N]: which rows have one of these faults."""
    found = np.zeros(rows, dtype=bool)
    for fault in faults:
        found[fault.rows] = True
    return found


def join_faults(faults: Iterable[Fault]) -> list[Fault]:
    """Return one Fault for each column and rule of these, which come in the order of their rows."""
    found: dict[tuple[str, str, bool], list[Fault]] = {}
    for fault in faults:
        found.setdefault((fault.column, fault.rule, fault.readable), []).append(fault)
    return [
        one[0]._replace(rows=np.concatenate([f.rows for f in one]), values=[v for f in one for v in f.values])
        for one in found.values()
    ]


def of_rows(fault: Fault, codes: np.ndarray) -> Fault:
    """Return the Fault of rows whose cells are those that `fault` is about at `codes`, i32[N]."""
    place = np.full(max(codes.max(initial=0), fault.rows.max(initial=0)) + 1, -1)
    place[fault.rows] = np.arange(len(fault.rows))
    rows = np.flatnonzero(place[codes] >= 0)
    return fault._replace(rows=rows, values=[fault.values[i] for i in place[codes[rows]].tolist()])


MEND_CELLS = "mend these cells, or leave those of the features empty that are not known"


def refuse_cells(schema: Schema, table: Table, *, label: bool = False) -> None:
    """Raise DataError with file and line of every number and date (with `label`, answer) that `encode` cannot take.

    Its last line says what to do.
    """
    faults = cell_faults(schema, table, label=label)
    if faults:
        raise DataError([*_listed(faults, table.lines, table.path), MEND_CELLS])


def cell_faults(schema: Schema, table: Table, *, label: bool = False) -> list[Fault]:
    """Return what `refuse_cells` refuses."""
    columns = [
        Column(name=column.name, kind=column.kind, datetime_format=column.datetime_format)
        for column in schema.of_kind("numeric", "datetime")
    ]
    answers = (*schema.target.columns, schema.weight_column) if label else ()
    columns += [Column(name=name, kind="ignored") for name in answers if name is not None]
    return _faults(table.columns, msgspec.structs.replace(schema, columns=tuple(columns)))


def faults_by_row(faults: list[Fault]) -> dict[int, str]:
    """Return what is wrong with each row that has one of these faults, all of it in a line."""
    found: dict[int, list[str]] = {}
    for fault in faults:
        for at, row in enumerate(fault.rows.tolist()):
            found.setdefault(row, []).append(_cell_in_words(fault, at))
    return {row: "; ".join(words) for row, words in found.items()}


def broken_rules(columns: Columns, schema: Schema, lines: np.ndarray, *, label: bool = False) -> BrokenRules:
    """Return what breaks the rules of a schema file in the features (with `label`, also the target) of rows to answer.

    Only cells that can be encoded are counted: `encode` refuses the others.
    """
    used = {column.name for column in schema.features} | (set(schema.target.columns) if label else set())
    ruled = tuple(column for column in schema.columns if column.name in used and _has_rules(column))
    faults = _faults(columns, msgspec.structs.replace(schema, columns=ruled))
    return _counted([fault for fault in faults if fault.readable], lines)


def add_broken(total: BrokenRules, more: BrokenRules) -> BrokenRules:
    """Return the sum of two counts, `total` of the earlier lines."""
    joined = dict(total)
    for rule, found in more.items():
        before = joined.get(rule, Broken(0, found.line))
        joined[rule] = Broken(before.cells + found.cells, before.line)
    return joined


def broken_notes(found: BrokenRules, path: str, fate: str) -> tuple[str, ...]:
    """Return a line for each broken rule that counts the cells and says what their `fate` is."""
    return tuple(f"{path}: {line}; {fate}" for line in _in_counts(found))


def _has_rules(column: Column) -> bool:
    bounded = column.minimum is not None or column.maximum is not None or column.integer
    return bounded or column.pattern is not None or column.fixed_vocabulary or column.required


def _faults(columns: Columns, schema: Schema) -> list[Fault]:
    present = (column for column in schema.columns if column.name in columns)
    return [fault for column in present for fault in column_faults(column, columns[column.name], schema)]


def _listed(faults: list[Fault], lines: np.ndarray, path: str) -> list[str]:
    first = sorted((row, f.column, i, k) for i, f in enumerate(faults) for k, row in enumerate(f.rows[:SHOWN].tolist()))
    shown = [_in_words(faults[i], k, f"{path}:{lines[row]}") for row, _, i, k in first[:SHOWN]]
    more = sum(len(fault.rows) for fault in faults) - len(shown)
    return [*shown, f"{path}: and {more:,} more violations of the schema"] if more > 0 else shown


def _in_words(fault: Fault, at: int, where: str) -> str:
    return f"{where}: {_cell_in_words(fault, at)}"


def _cell_in_words(fault: Fault, at: int) -> str:
    value = fault.values[at]
    got = repr(value if len(value) <= LONGEST else value[:LONGEST] + " ...") if value.strip() else "a missing cell"
    return f"column '{fault.column}': expected {fault.rule}, got {got}"


def _fate(faults: list[Fault], keep: np.ndarray) -> str:
    dropped, kept = int((~keep).sum()), int((_rows_of(faults, len(keep)) & keep).sum())
    what = f"of {len(keep):,} rows that violate the schema"
    if kept and dropped:
        return f"kept {kept:,} and dropped {dropped:,} {what}; those dropped cannot be encoded"
    return f"kept {kept:,} {what}" if kept else f"dropped {dropped:,} {what}"


def _classes_left(targets: np.ndarray | None, schema: Schema, keep: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the classes that had rows and lost them all, and those that have some; nothing for regression."""
    if targets is None or schema.target.task != "classification":
        return [], []
    before, after = set(texts(targets)), set(texts(targets[keep]))
    present = [label for label in schema.target.classes if label in before]
    return [label for label in present if label not in after], [label for label in present if label in after]


def _counted(faults: list[Fault], lines: np.ndarray) -> BrokenRules:
    found: BrokenRules = {}
    for fault in sorted(faults, key=lambda fault: (fault.rows[0], fault.column)):
        found = add_broken(found, {(fault.column, fault.rule): Broken(len(fault.rows), int(lines[fault.rows[0]]))})
    return found


def _in_counts(found: BrokenRules) -> tuple[str, ...]:
    return tuple(
        f"column '{column}': expected {rule}; {count.cells:,} cells differ, the first on line {count.line}"
        for (column, rule), count in found.items()
    )


def column_faults(column: Column, cells: np.ndarray, schema: Schema) -> list[Fault]:
    """Return the faults of one column, each cell in at most one of them."""
    values = texts(cells)
    rules = _rules(column, cells, values, schema)
    is_target = column.name in schema.target.columns
    required = column.required or is_target
    if not required and not any(rule.broken.any() for rule in rules):
        return []
    gaps = missing_mask(values, schema.missing_markers)
    found = [_Rule(gaps, "a value (required)", readable=not is_target)] if required else []
    open_rows = ~gaps
    for rule in rules:
        found.append(rule._replace(broken=rule.broken & open_rows))
        open_rows &= ~rule.broken
    return [_fault(column.name, rule, values) for rule in found if rule.broken.any()]


def _fault(column: str, rule: _Rule, cells: list[str]) -> Fault:
    rows = np.flatnonzero(rule.broken)
    return Fault(rows, column, [cells[row] for row in rows.tolist()], rule.words, rule.readable)


def _rules(column: Column, cells: np.ndarray, values: list[str], schema: Schema) -> list[_Rule]:
    """Return the rules of a column, with the cells (bool[N]) that break each; first those that no encoding survives."""
    is_target = column.name in schema.target.columns
    found = _number_rules(column, cells, schema) if is_number(column, schema) else []
    if column.kind == "datetime":
        _, bad = parse_dates(cells, schema.missing_markers, column.datetime_format)
        form = "ISO 8601" if column.datetime_format == "iso" else column.datetime_format
        found.append(_Rule(bad, f"a date ({form})", readable=False))
    allowed = schema.target.texts(column.name) if is_target else column.vocabulary
    if allowed and (column.fixed_vocabulary or is_target):
        unknown = _where(values, lambda text: text not in allowed)
        found.append(_Rule(unknown, _one_of(allowed), readable=not is_target))
    elif column.kind == "boolean":
        odd = _where(values, lambda text: text.strip().casefold() not in _BOOLEANS)
        found.append(_Rule(odd, "true/false or yes/no"))
    if column.pattern is not None:
        search = re.compile(column.pattern).search
        found.append(_Rule(_where(values, lambda text: search(text) is None), f"text matching {column.pattern!r}"))
    return sorted(found, key=lambda rule: rule.readable)


def is_number(column: Column, schema: Schema) -> bool:
    """Return whether the cells of a column must be numbers."""
    bounded = column.integer or column.minimum is not None or column.maximum is not None
    target = column.name in schema.target.columns and schema.target.task == "regression"
    return column.kind == "numeric" or bounded or target or column.name == schema.weight_column


def _number_rules(column: Column, cells: np.ndarray, schema: Schema) -> list[_Rule]:
    """Return the rules that a number is one, and that it is whole and within bounds; both in the same words."""
    numbers, bad = parse_numbers(cells, schema.missing_markers)
    is_weight, is_target = column.name == schema.weight_column, column.name in schema.target.columns
    low = 0.0 if column.minimum is None and is_weight else column.minimum
    bounds = [f">= {low:g}"] if low is not None else []
    bounds += [f"<= {column.maximum:g}"] if column.maximum is not None else []
    words = " ".join(["a whole number" if column.integer else "a number", " and ".join(bounds)]).strip()
    if is_weight:
        bad = bad | (numbers < 0)
    outside = numbers != np.floor(numbers) if column.integer else np.zeros(len(cells), dtype=bool)
    if low is not None:
        outside |= numbers < low
    if column.maximum is not None:
        outside |= numbers > column.maximum
    encoded = column.kind == "numeric" or is_weight or (is_target and schema.target.task == "regression")
    return [_Rule(bad, words, readable=not encoded), _Rule(outside & ~bad, words)]


def _where(values: list[str], test: Callable[[str], bool]) -> np.ndarray:
    """Return bool[N]: where `test` holds, asked once for each distinct text."""
    answers = {text: test(text) for text in dict.fromkeys(values)}
    return np.fromiter(map(answers.__getitem__, values), bool, len(values))


def _one_of(allowed: tuple[str, ...]) -> str:
    more = f" and {len(allowed) - SHOWN} more" if len(allowed) > SHOWN else ""
    return f"one of {', '.join(map(repr, allowed[:SHOWN]))}{more}"
