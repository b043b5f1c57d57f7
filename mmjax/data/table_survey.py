"""A CSV file is read once, in chunks, and surveyed: what stays of it is a `Seen` for each column.

In memory are, beside what `survey` says of the columns: one chunk of about CHUNK_CELLS cells, 8 bytes a row for the
lines, and with an `id_column` the ids (16 bytes a row, and those longer than 15 bytes).
"""

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.config import TabularData, target_columns
from mmjax.data.cache import Tell
from mmjax.data.cells import texts
from mmjax.data.prepared import Quarantined
from mmjax.data.quarantine import find_unanswered, numbers_asked, unanswered_notes
from mmjax.data.schema_file import DeclaredColumn, DeclaredSchema
from mmjax.data.survey import ColumnSurvey, Keep, Place, Seen, Strip, share
from mmjax.data.table import Layout, Table, read_chunks
from mmjax.schema import Columns

CHUNK_CELLS = 600_000
"""About so many cells are in memory as texts."""
TELL_S = 5.0
"""So often it is told how far a file is read."""


class Survey(NamedTuple):
    """The N answered rows of a table."""

    layout: Layout
    columns: dict[str, Seen]
    lines: np.ndarray
    """i64[N]: where in the file each row starts."""
    names: np.ndarray
    """[N]: the ids as texts, else the lines."""
    answered: np.ndarray
    """bool[rows of the file]: which rows these are."""
    notes: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    place: Place


def strips(folder: Path | None) -> Place:
    """Return what makes strips, each in a file of its own in `folder`, or in memory."""
    numbers = count()
    return lambda _name, dtype: Strip(dtype, folder / f"{next(numbers)}.strip" if folder else None)


def survey_table(
    layout: Layout, data: TabularData, declared: DeclaredSchema | None, place: Place, tell: Tell | None = None
) -> Survey:
    """Return the Survey of the rows that have an answer and a weight; of all rows under policy `fail`.

    Where no row would be left, all stay: the inference of the schema says what is wrong. `tell` hears how far it is.
    """
    tables = partial(_told, layout, tell)
    if data.on_invalid != "fail":
        survey = _survey(tables(), layout, data, declared, place, _answered_test(data, declared))
        if len(survey.lines):
            return survey
    return _survey(tables(), layout, data, declared, place, None)


def with_texts(survey: Survey, names: Collection[str], data: TabularData) -> Survey:
    """Return the Survey with the texts of these columns: one more reading of the file if they are not there."""
    absent = [name for name in names if survey.columns[name].coded is None]
    if not absent:
        return survey
    markers, everything = data.missing_markers, Keep(texts=True)
    found = {name: ColumnSurvey(name, markers, 0, everything, survey.place) for name in absent}
    for table in answered_chunks(survey):
        for name, column in found.items():
            column.add(texts(table.columns[name]))
    return survey._replace(columns=survey.columns | {name: column.seen() for name, column in found.items()})


def answered_chunks(survey: Survey) -> Iterator[Table]:
    """Yield the answered rows as they are in the file, chunk by chunk: one more reading of it."""
    first = 0
    for table in read_chunks(survey.layout, _chunk_rows(survey.layout)):
        keep = survey.answered[first : first + len(table.lines)]
        first += len(table.lines)
        yield table if keep.all() else _rows_of(table, keep)


def cells_of(survey: Survey, names: Collection[str], rows: np.ndarray) -> Columns:
    """Return the cells of these rows as read. If texts are not there, the file is read again up to the last of them."""
    found = {name: np.empty(len(rows), object) for name in names}
    absent = []
    for name in names:
        coded = survey.columns[name].coded
        if coded is None:
            absent.append(name)
        else:
            found[name][:] = coded.texts[coded.codes.read()[rows]]
    first = 0
    for table in answered_chunks(survey) if absent and len(rows) else ():
        at = np.flatnonzero((rows >= first) & (rows < first + len(table.lines)))
        for name in absent:
            found[name][at] = table.columns[name][rows[at] - first]
        first += len(table.lines)
        if first > rows.max():
            break
    return found


def _told(layout: Layout, tell: Tell | None) -> Iterator[Table]:
    """Yield the file in chunks; `tell` hears every TELL_S seconds how many rows were read."""
    rows, last = 0, time.monotonic()
    for table in read_chunks(layout, _chunk_rows(layout)):
        yield table
        rows += len(table.lines)
        if tell is not None and time.monotonic() - last > TELL_S:
            last = time.monotonic()
            tell(f"{layout.path}: {rows:,} of {layout.rows:,} rows are read")


def _survey(
    tables: Iterator[Table],
    layout: Layout,
    data: TabularData,
    declared: DeclaredSchema | None,
    place: Place,
    answered_test: Callable[[Table], tuple[np.ndarray, tuple[Quarantined, ...]]] | None,
) -> Survey:
    many = share(len(layout.names))
    known = declared.columns if declared else {}
    columns = {
        name: ColumnSurvey(name, data.missing_markers, many, _keep(name, data, known.get(name)), place)
        for name in layout.names
    }
    lines, ids, answered, quarantined = Strip(np.int64), [], [np.empty(0, bool)], []
    for table in tables:
        keep = np.ones(len(table.lines), bool)
        if answered_test is not None:
            keep, found = answered_test(table)
            quarantined += found
        rows = table if keep.all() else _rows_of(table, keep)
        for name, column in columns.items():
            column.add(texts(rows.columns[name]))
        lines.append(rows.lines)
        answered.append(keep)
        if data.id_column in rows.columns:
            ids.append(rows.columns[data.id_column].astype(np.dtypes.StringDType()))
    quarantined.sort(key=lambda one: int(one.name))
    return Survey(
        layout,
        {name: column.seen() for name, column in columns.items()},
        lines.read(),
        np.concatenate(ids) if ids else lines.read(),
        np.concatenate(answered),
        unanswered_notes(quarantined, layout.path, layout.rows),
        tuple(quarantined),
        place,
    )


def _answered_test(
    data: TabularData, declared: DeclaredSchema | None
) -> Callable[[Table], tuple[np.ndarray, tuple[Quarantined, ...]]]:
    """Return what tells which rows of a table are answered, and the others."""
    number = numbers_asked(data, declared)

    def test(table: Table) -> tuple[np.ndarray, tuple[Quarantined, ...]]:
        found = find_unanswered(table.columns, table.lines, table.path, data, number=number)
        return found.keep, found.quarantined

    return test


def _keep(name: str, data: TabularData, declared: DeclaredColumn | None) -> Keep:
    """Return what is known to be needed of a column before a cell of it is read."""
    is_target = name in target_columns(data)
    classes = is_target and (data.task in ("classification", "multilabel") or isinstance(data.target_column, tuple))
    number = is_target or name == data.weight_column
    if declared is None:
        return Keep(texts=classes, numbers=number)
    words = bool(declared.enum) or declared.kind in ("categorical", "boolean")
    return Keep(
        texts=classes or words or (is_target and declared.type in ("string", "boolean")),
        numbers=number or declared.kind == "numeric" or declared.type in ("number", "integer"),
        days=declared.kind == "datetime" or declared.format is not None,
    )


def _rows_of(table: Table, keep: np.ndarray) -> Table:
    return Table({name: cells[keep] for name, cells in table.columns.items()}, table.lines[keep], table.path)


def _chunk_rows(layout: Layout) -> int:
    return max(1, CHUNK_CELLS // len(layout.names))
