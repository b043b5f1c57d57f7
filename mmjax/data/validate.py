"""Every row against the rules of the Schema; what breaks one is refused, dropped or reported, never silently."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, assert_never

import numpy as np

from mmjax.config import Policy
from mmjax.data.cells import BOOLEAN_PAIRS, missing_mask, parse_dates, parse_numbers, texts
from mmjax.errors import DataError
from mmjax.schema import Column, Columns, Schema

SHOWN = 20
"""How many violations are listed; the others are counted."""
_BOOLEANS = frozenset(word for pair in BOOLEAN_PAIRS for word in pair)


class Violation(NamedTuple):
    """A cell that breaks a rule: its row (from 0), line in the file, column, value, and the rule in words."""

    row: int
    line: int
    column: str
    value: str
    rule: str


class Validation(NamedTuple):
    """The rows to `keep` (bool[N]), every violation by line, and notes that count what was dropped or left in."""

    keep: np.ndarray
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]


class _Fault(NamedTuple):
    rows: np.ndarray
    column: str
    cells: list[str]
    rule: str


def validate_rows(columns: Columns, schema: Schema, lines: np.ndarray, path: str, policy: Policy) -> Validation:
    """Return which rows obey the Schema: required cells, types, enums, minima, maxima, patterns, known classes.

    Columns that are absent are passed over. A cell breaks at most one rule, the first of these. Policy `fail`:
    DataError with file, line, column, rule and value of 20 violations; `drop` does not keep these rows, `report` does.
    """
    faults = [
        fault
        for column in schema.columns
        if column.name in columns
        for fault in _column_faults(column, columns[column.name], schema)
    ]
    keep = np.ones(len(lines), dtype=bool)
    violations = sorted(
        Violation(int(row), int(lines[row]), fault.column, fault.cells[row], fault.rule)
        for fault in faults
        for row in fault.rows
    )
    if not violations:
        return Validation(keep, (), ())
    match policy:
        case "fail":
            raise DataError(_listed(violations, path))
        case "drop":
            keep[[violation.row for violation in violations]] = False
            if not keep.any():
                raise DataError([*_listed(violations, path), f"{path}: every row violates the schema; none is left"])
            return Validation(keep, tuple(violations), _notes(violations, path, len(keep), "dropped"))
        case "report":
            return Validation(keep, tuple(violations), _notes(violations, path, len(keep), "kept"))
        case _:
            assert_never(policy)


def _listed(violations: list[Violation], path: str) -> list[str]:
    shown = [_in_words(violation, path) for violation in violations[:SHOWN]]
    more = len(violations) - SHOWN
    return [*shown, f"{path}: and {more:,} more violations of the schema"] if more > 0 else shown


def _in_words(violation: Violation, path: str) -> str:
    got = repr(violation.value) if violation.value.strip() else "a missing cell"
    return f"{path}:{violation.line}: column '{violation.column}': expected {violation.rule}, got {got}"


def _notes(violations: list[Violation], path: str, rows: int, fate: str) -> tuple[str, ...]:
    first = {(v.column, v.rule): v for v in reversed(violations)}
    counts = Counter((v.column, v.rule) for v in violations)
    total = len({violation.row for violation in violations})
    lines = [
        f"column '{column}': expected {rule}; {count:,} cells differ, the first on line {first[column, rule].line}"
        for (column, rule), count in counts.items()
    ]
    return (f"{path}: {fate} {total:,} of {rows:,} rows that violate the schema", *lines)


def _column_faults(column: Column, cells: np.ndarray, schema: Schema) -> list[_Fault]:
    """Return the faults of one column, each cell in at most one of them."""
    values = texts(cells)
    rules = _rules(column, cells, values, schema)
    required = column.required or column.name == schema.target.column
    if not required and not any(broken.any() for broken, _ in rules):
        return []
    gaps = missing_mask(values, schema.missing_markers)
    found = [(gaps, "a value (required)")] if required else []
    open_rows = ~gaps
    for broken, rule in rules:
        found.append((broken & open_rows, rule))
        open_rows &= ~broken
    return [_Fault(np.flatnonzero(broken), column.name, values, rule) for broken, rule in found if broken.any()]


def _rules(column: Column, cells: np.ndarray, values: list[str], schema: Schema) -> list[tuple[np.ndarray, str]]:
    """Return (bool[N] of the cells that break it, the rule in words) for each rule of a column, in order."""
    found = _number_rules(column, cells, schema) if _is_number(column, schema) else []
    if column.kind == "datetime":
        _, bad = parse_dates(cells, schema.missing_markers, column.datetime_format)
        form = "ISO 8601" if column.datetime_format == "iso" else column.datetime_format
        found.append((bad, f"a date ({form})"))
    allowed = schema.target.classes if column.name == schema.target.column else column.vocabulary
    if allowed and (column.fixed_vocabulary or column.name == schema.target.column):
        found.append((_where(values, lambda text: text not in allowed), _one_of(allowed)))
    elif column.kind == "boolean":
        found.append((_where(values, lambda text: text.strip().casefold() not in _BOOLEANS), "true/false or yes/no"))
    if column.pattern is not None:
        search = re.compile(column.pattern).search
        found.append((_where(values, lambda text: search(text) is None), f"text matching {column.pattern!r}"))
    return found


def _is_number(column: Column, schema: Schema) -> bool:
    bounded = column.integer or column.minimum is not None or column.maximum is not None
    target = column.name == schema.target.column and schema.target.task == "regression"
    return column.kind == "numeric" or bounded or target or column.name == schema.weight_column


def _number_rules(column: Column, cells: np.ndarray, schema: Schema) -> list[tuple[np.ndarray, str]]:
    numbers, bad = parse_numbers(cells, schema.missing_markers)
    low = 0.0 if column.minimum is None and column.name == schema.weight_column else column.minimum
    bounds = [f">= {low:g}"] if low is not None else []
    bounds += [f"<= {column.maximum:g}"] if column.maximum is not None else []
    rule = " ".join(["a whole number" if column.integer else "a number", " and ".join(bounds)]).strip()
    if column.integer:
        bad |= numbers != np.floor(numbers)
    if low is not None:
        bad |= numbers < low
    if column.maximum is not None:
        bad |= numbers > column.maximum
    return [(bad, rule)]


def _where(values: list[str], test: Callable[[str], bool]) -> np.ndarray:
    """Return bool[N]: where `test` holds, asked once for each distinct text."""
    answers = {text: test(text) for text in dict.fromkeys(values)}
    return np.fromiter(map(answers.__getitem__, values), bool, len(values))


def _one_of(allowed: tuple[str, ...]) -> str:
    more = f" and {len(allowed) - SHOWN} more" if len(allowed) > SHOWN else ""
    return f"one of {', '.join(map(repr, allowed[:SHOWN]))}{more}"
