"""Text tables for people: aligned by what a terminal shows, safe for whatever a cell holds."""

import unicodedata
from typing import NamedTuple

GAP = "  "


class Table(NamedTuple):
    """A titled table: the first `text_columns` columns are text (left), the others numbers (right)."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1
    diagonal: bool = False
    """True for a confusion matrix: the cell at row i, column i + 1 is right, the others are mistakes."""


def printable(text: str) -> str:
    r"""Return `text` with control characters, line ends and lone surrogates as visible escapes.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cell_width(text: str) -> int:
    """Return the terminal cells that `text` takes: two for East Asian wide characters, none for combining marks.

    >>> cell_width("abc"), cell_width("花"), cell_width("e\u0301")
    (3, 2, 1)
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """Return `text` in at most `width` cells (>= 4), its middle replaced by `..` where it is longer.

    The end is kept as well, for names often differ only there.

    >>> shorten("a_very_long_name_1", 10)
    'a_ve..me_1'
    """
    if cell_width(text) <= width:
        return text
    head = _fitting(text, (width - 1) // 2)
    tail = _fitting(text[::-1], (width - 2) // 2)[::-1]
    return f"{head}..{tail}"


def _fitting(text: str, width: int) -> str:
    taken = 0
    for end, character in enumerate(text):
        taken += cell_width(character)
        if taken > width:
            return text[:end]
    return text


def number(value: float | None) -> str:
    """Return a metric in about five figures; `-` for None (undefined).

    >>> number(0.93333), number(541.237), number(1234567.0), number(0.0000123), number(None)
    ('0.9333', '541.2370', '1,234,567.0', '1.23e-05', '-')
    """
    if value is None:
        return "-"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e9):
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 1e3 else f"{value:,.1f}"


def count(value: float | None) -> str:
    """Return a number of rows; weighted ones keep one decimal.

    >>> count(1200), count(3.0), count(2.5)
    ('1,200', '3', '2.5')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def column_widths(table: Table) -> list[int]:
    """Return the cells each column takes."""
    return [max(cell_width(row[i]) for row in (table.header, *table.rows)) for i in range(len(table.header))]


def table_width(table: Table) -> int:
    """Return the cells that a line of the table takes."""
    return sum(column_widths(table)) + len(GAP) * (len(table.header) - 1)


def table_lines(table: Table) -> list[str]:
    """Return the table as plain lines: title, header, a rule, rows, note."""
    widths = column_widths(table)
    rule = tuple("-" * width for width in widths)
    rows = [_line(row, widths, table.text_columns) for row in (table.header, rule, *table.rows)]
    return [table.title, *rows, *([table.note] if table.note else [])]


def _line(row: tuple[str, ...], widths: list[int], text_columns: int) -> str:
    cells = []
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - cell_width(cell))
        cells.append(cell + space if i < text_columns else space + cell)
    return GAP.join(cells).rstrip()
