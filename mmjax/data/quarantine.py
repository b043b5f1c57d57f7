"""The quarantine: a line for every cell or file that broke a rule, whether its row was left out or kept.

What the policies of `on_invalid` do, for tables and images alike:

- `fail` stops with the first 20, each with its line or file.
- `drop` leaves out every row that breaks a rule.
- `report` keeps the rows that break a rule and can still be encoded (a number out of range, a text against a pattern or
  outside an enum, where it counts as unknown, a required cell that is missing), and leaves out those that cannot: no
  number in a numeric column, no date in a date column, no answer or none of the classes, no weight of 0 or more, a
  broken image.

Under `drop` and `report` all of them are listed here and counted in the notes.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import UNSET

from mmjax.config import DEFAULT_MISSING_MARKERS, ImageData, TabularData, target_columns
from mmjax.data.cells import missing_mask, parse_numbers, texts
from mmjax.data.prepared import Quarantined
from mmjax.data.schema_file import DeclaredSchema
from mmjax.data.table import Table
from mmjax.data.validate import Validation
from mmjax.errors import DataError
from mmjax.schema import Columns

QUARANTINE = "quarantine.csv"
"""The name of the file in a run."""
LONGEST = 1000
"""Characters of a value that are listed; a longer one ends in ` ...`."""


class Unanswered(NamedTuple):
    """Which rows have an answer and a weight to learn from: `keep` bool[N], notes that count the others, their list."""

    keep: np.ndarray
    notes: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]


def quarantine_lines(quarantined: Sequence[Quarantined], kept_in: Path) -> list[str]:
    """Return the line that says where the broken cells and files are listed; none where there are none."""
    if not quarantined:
        return []
    one = len(quarantined) == 1
    return [
        f"quarantine: {len(quarantined):,} broken cell{' or file is' if one else 's or files are'} listed in {kept_in}"
    ]


def write_quarantine(path: str | os.PathLike[str], quarantined: Sequence[Quarantined]) -> None:
    """Write the CSV `name,column,value,reason,kept`, whole or not at all; DataError where that cannot be."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            # before Python 3.13 a lone carriage return is not quoted of itself
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(Quarantined._fields)
            writer.writerows((*found[:4], "yes" if found.kept else "no") for found in quarantined)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def answered_rows(
    table: Table, data: TabularData, declared: DeclaredSchema | None
) -> tuple[Table, tuple[str, ...], tuple[Quarantined, ...]]:
    """Return (the rows of a table with an answer and a weight, notes, the others); all rows under policy `fail`.

    A regression target (by the config or the schema file) must be a number. Where no row would be left, all stay: the
    inference of the schema says what is wrong.
    """
    if data.on_invalid == "fail":
        return table, (), ()
    number = numbers_asked(data, declared)
    found = find_unanswered(table.columns, table.lines, table.path, data, number=number)
    if found.keep.all() or not found.keep.any():
        return table, (), ()
    columns = {name: cells[found.keep] for name, cells in table.columns.items()}
    return Table(columns, table.lines[found.keep], table.path), found.notes, found.quarantined


def numbers_asked(data: TabularData, declared: DeclaredSchema | None) -> bool:
    """Return whether the config or the schema file says that the target is a number to be predicted."""
    if isinstance(data.target_column, tuple):
        return False
    column = declared.columns.get(data.target_column) if declared else None
    return data.task == "regression" or (data.task is UNSET and column is not None and column.type == "number")


def find_unanswered(
    columns: Columns, names: np.ndarray, path: str, data: TabularData | ImageData, *, number: bool
) -> Unanswered:
    """Return which rows miss the target or the weight; with `number` the target must also be a number.

    `names` [N] are lines of the file (i64) or names of images. Columns that are absent are passed over.
    """
    markers = data.missing_markers if isinstance(data, TabularData) else DEFAULT_MISSING_MARKERS
    keep = np.ones(len(names), dtype=bool)
    found: list[tuple[int, Quarantined]] = []
    for column, bad, what in _unanswered(columns, data, markers, number=number):
        rows = np.flatnonzero(bad & keep)
        keep &= ~bad
        if len(rows):
            values = texts(columns[column][rows])
            found += [
                (row, Quarantined(str(names[row]), column, _short(value), f"expected {what}", kept=False))
                for row, value in zip(rows.tolist(), values, strict=True)
            ]
    quarantined = tuple(one for _, one in sorted(found, key=lambda pair: pair[0]))
    notes = unanswered_notes(quarantined, path, len(keep), by_line=names.dtype.kind == "i")
    return Unanswered(keep, notes, quarantined)


def unanswered_notes(found: Iterable[Quarantined], path: str, rows: int, *, by_line: bool = True) -> tuple[str, ...]:
    """Return a line for each thing that rows lack, with their number of all `rows` and the first."""
    reasons: dict[str, list[str]] = {}
    for one in found:
        reasons.setdefault(one.reason.removeprefix("expected "), []).append(one.name)
    first = "the first on line" if by_line else "the first is"
    return tuple(
        f"{path}: dropped {len(names):,} of {rows:,} rows without {what}, {first} {names[0]}"
        for what, names in reasons.items()
    )


def _unanswered(
    columns: Columns, data: TabularData | ImageData, markers: tuple[str, ...], *, number: bool
) -> list[tuple[str, np.ndarray, str]]:
    """Return (column, bool[N] of the rows without, what they lack) for the target and the weight."""
    found = []
    weight = data.weight_column
    for target in (name for name in target_columns(data) if name in columns):
        found.append((target, missing_mask(texts(columns[target]), markers), f"a value of '{target}'"))
        if number:
            found.append((target, parse_numbers(columns[target], markers)[1], f"a number as '{target}', the target"))
    if weight is not None and weight in columns:
        numbers, _ = parse_numbers(columns[weight], markers)
        found.append((weight, ~(numbers >= 0), f"a weight of 0 or more in '{weight}'"))
    return found


def quarantine_cells(validation: Validation) -> tuple[Quarantined, ...]:
    """Return the cells that break a rule, by their line in the file."""
    return tuple(
        Quarantined(
            str(found.line),
            found.column,
            _short(found.value),
            f"expected {found.rule}",
            kept=bool(validation.keep[found.row]),
        )
        for found in validation.violations
    )


def quarantine_images(
    names: np.ndarray, images: np.ndarray, column: str, bad: Sequence[tuple[int, str]]
) -> tuple[Quarantined, ...]:
    """Return the images that cannot be read (`bad`: row and reason), none of which is kept; the value is the path."""
    return tuple(
        Quarantined(str(names[row]), column, images[row] if isinstance(images[row], str) else "", reason, kept=False)
        for row, reason in bad
    )


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else value[:LONGEST] + " ..."
