"""Unknown categories: cells that training did not see and a model takes for missing; found in the codes, and told."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data.audit_rows import counted
from mmjax.data.cells import cell_text, missing_texts
from mmjax.schema import Columns, Schema

MOST_SHOWN = 5
"""How many cells of a column a warning shows."""
LONGEST = 60
"""Characters of a cell that it shows."""


class Unknown(NamedTuple):
    """A cell that is neither missing nor in the vocabulary of its column."""

    row: int
    """From 0."""
    column: str
    text: str


def unknown_cells(
    schema: Schema, columns: Columns, category: np.ndarray | None, *, start: int = 0
) -> tuple[Unknown, ...]:
    """Return the Unknown cells by row; `category i32[N, C]` is `Batch["category"]` of the rows from `start` on.

    Where all codes are known that is one look at them, as it is asked of every request.
    """
    if category is None or category.all():
        return ()
    gaps, found = missing_texts(schema.missing_markers), []
    for column, codes in zip(schema.category_columns, category.T, strict=True):
        cells = columns.get(column.name)
        if cells is None:
            continue
        for row in (np.flatnonzero(codes == 0) + start).tolist():
            text = cell_text(cells[row])
            if text.strip() not in gaps:
                found.append(Unknown(row, column.name, text))
    return tuple(sorted(found, key=lambda cell: cell.row))


def counts_by_column(cells: Sequence[Unknown]) -> Counter[str]:
    """Return how many of the cells each column has."""
    return Counter(cell.column for cell in cells)


def unknown_warnings(cells: Sequence[Unknown], *, first: int = 0) -> tuple[str, ...]:
    """Return a line for each column that has any, rows counted from 1 where row `first` is the first.

    >>> unknown_warnings([Unknown(2, "city", "Bern"), Unknown(3, "city", "Rom")])
    ("column 'city': 2 cells of a category unknown to the model: 'Bern' (row 3), 'Rom' (row 4)",)
    """
    lines = []
    for column, count in counts_by_column(cells).items():
        shown = [cell for cell in cells if cell.column == column][:MOST_SHOWN]
        told = [f"{cell.text[:LONGEST]!r} (row {cell.row - first + 1:,})" for cell in shown]
        more = [f"and {count - len(shown):,} more"] if count > len(shown) else []
        what = f"column '{column}': {counted(count, 'cell')} of a category unknown to the model"
        lines.append(f"{what}: {', '.join([*told, *more])}")
    return tuple(lines)
