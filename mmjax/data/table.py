"""CSV files as text: every cell exactly as written, every row with its line, every fault of the file at once.

A file is read three times: its bytes (NUL, encoding, any quotes), its shape (cells and line of each row), its cells.
So a file that is at fault is refused before its first row is used, also when it is streamed. This is the one module
that imports pandas, and only for tables large enough for its speed to matter.
"""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import IO, NamedTuple, cast

import numpy as np

from mmjax.errors import DataError
from mmjax.schema import Columns

SHOWN = 20
"""How many of many like problems are listed; the others are counted."""
DELIMITERS = (",", ";", "\t", "|")
"""What may part the cells of a file that was read with another delimiter."""
BLOCK_BYTES = 8 << 20
PANDAS_CELLS = 1_000_000
"""With fewer cells the `csv` module is quick enough, and importing pandas (0.3 s) would be the larger cost."""
CELL_LIMIT = 64 << 20
"""Characters of the longest cell in a file with quotes; a longer one is a quote left open."""
CSV_BATCH_ROWS = 20_000

_Records = Iterator[tuple[np.ndarray, np.ndarray]]


class Table(NamedTuple):
    """Rows of a file: `columns` of `object` arrays of `str`, and the 1-based `lines` (i64[N]) where each row starts."""

    columns: Columns
    lines: np.ndarray
    path: str


class Layout(NamedTuple):
    """A file without faults; row `i` starts on line `i + offsets[k]`, `k` the last with `changes[k] <= i`."""

    path: str
    delimiter: str
    names: tuple[str, ...]
    rows: int
    changes: np.ndarray
    offsets: np.ndarray


def read_table(path: str | os.PathLike[str], *, delimiter: str = ",") -> Table:
    """Return the whole file; DataError with every fault of the file, or when it has no rows.

    A `.gz` file is decompressed; the text is UTF-8 with or without a byte order mark. A blank line is a missing cell
    in a file of one column, is ignored at the end of any other file, and is a fault elsewhere.
    """
    layout = read_layout(path, delimiter=delimiter)
    (table,) = read_chunks(layout, layout.rows)
    return table


def iter_table(path: str | os.PathLike[str], *, delimiter: str = ",", chunk_rows: int = 50_000) -> Iterator[Table]:
    """Yield the file in tables of at most `chunk_rows` rows, in bounded memory; nothing for a header without rows.

    Raises DataError with every fault of the file before the first table.
    """
    layout = _layout(os.fspath(path), delimiter)
    if layout.rows:
        yield from read_chunks(layout, chunk_rows)


def read_layout(path: str | os.PathLike[str], *, delimiter: str = ",") -> Layout:
    """Return the Layout of a file; DataError with every fault of the file, or when it has no rows."""
    layout = _layout(os.fspath(path), delimiter)
    if layout.rows == 0:
        raise DataError(f"{layout.path}: expected rows below the header, got none")
    return layout


def _layout(path: str, delimiter: str) -> Layout:
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0':
        raise DataError(f"{path}: delimiter: expected one ASCII character that is no quote, got {delimiter!r}")
    with _reading(path):
        quoted = _check_bytes(path)
        names = _read_names(path, delimiter)
        records = (_quoted_records if quoted else _plain_records)(path, delimiter)
        return Layout(path, delimiter, names, *_check_shape(path, names, records))


def read_chunks(layout: Layout, chunk_rows: int) -> Iterator[Table]:
    """Yield the rows of a file in tables of at most `chunk_rows`; DataError when it no longer has as many."""
    small = layout.rows * len(layout.names) <= PANDAS_CELLS
    first = 0
    with _reading(layout.path):
        for cells in (_cells_by_csv if small else _cells_by_pandas)(layout, chunk_rows):
            rows = np.arange(first, first + len(cells[0]), dtype=np.int64)
            lines = rows + layout.offsets[np.searchsorted(layout.changes, rows, side="right") - 1]
            yield Table(dict(zip(layout.names, cells, strict=True)), lines, layout.path)
            first += len(rows)
    if first != layout.rows:
        raise DataError(f"{layout.path}: expected {layout.rows} rows, got {first}; the file changed while it was read")


def _cells_by_csv(layout: Layout, chunk_rows: int) -> Iterator[list[np.ndarray]]:
    with closing(_csv_rows(layout.path, layout.delimiter)) as rows:
        cells = islice((row or [""] for row, _ in rows), 1, layout.rows + 1)
        while chunk := list(islice(cells, chunk_rows)):
            yield [_text_array(column) for column in zip(*chunk, strict=True)]


def _cells_by_pandas(layout: Layout, chunk_rows: int) -> Iterator[list[np.ndarray]]:
    import pandas

    # dtype=object pins cells to Python str: the default text dtype depends on whether pyarrow is installed.
    with (
        _open(layout.path) as file,
        pandas.read_csv(
            cast(IO[str], file),
            sep=layout.delimiter,
            header=0,
            names=list(range(len(layout.names))),
            index_col=False,
            dtype=object,
            na_filter=False,
            skip_blank_lines=False,
            nrows=layout.rows,
            chunksize=chunk_rows,
            encoding="utf-8",
        ) as frames,
    ):
        for frame in frames:
            yield [frame[i].to_numpy() for i in range(len(layout.names))]


def _text_array(cells: Sequence[str]) -> np.ndarray:
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array


def _check_bytes(path: str) -> bool:
    """Return whether the file holds any quote character; DataError on NUL bytes and on text that is not UTF-8."""
    quoted, offset, line = False, 0, 1
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES) + file.readline():
            if (nul := block.find(0)) >= 0:
                line += block.count(b"\n", 0, nul)
                raise DataError(f"{path}:{line}: a NUL byte; the file is damaged, binary or UTF-16; save it as UTF-8")
            try:
                block.decode("utf-8")
            except UnicodeDecodeError as error:
                line += block.count(b"\n", 0, error.start)
                byte = f"byte 0x{block[error.start]:02x} (at byte {offset + error.start:,} of the file)"
                raise DataError(f"{path}:{line}: expected UTF-8, got {byte}; convert the file to UTF-8") from error
            quoted = quoted or b'"' in block
            offset, line = offset + len(block), line + block.count(b"\n")
    return quoted


def _read_names(path: str, delimiter: str) -> tuple[str, ...]:
    """Return the header; DataError when it is absent, or a name is empty or given twice, or parted by another mark."""
    with closing(_csv_rows(path, delimiter)) as rows:
        names, row = ([*islice((row for row, _ in rows), 2), None, None])[:2]
    if names is None:
        raise DataError(f"{path}: expected a header row, got an empty file")
    if advice := _other_delimiter(delimiter.join(names), delimiter.join(row or ()), delimiter):
        raise DataError(f"{path}:1: {advice}")
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(names or [""], 1):
        positions.setdefault(name if name.strip() else "", []).append(i)
    problems = []
    for name, at in positions.items():
        where = ", ".join(map(str, at))
        if not name:
            got = f"got none at position {where} of the header{_name_advice(names, at)}"
            problems.append(f"{path}:1: expected a name for every column, {got}")
        elif len(at) > 1:
            problems.append(f"{path}:1: expected different column names, got {name!r} at positions {where}")
    if problems:
        raise DataError(problems)
    return tuple(names)


def _name_advice(names: Sequence[str], unnamed: Sequence[int]) -> str:
    """Return what to do about columns without a name; nothing where the whole line is blank."""
    if len(names) < 2:
        return ""
    return "; name it, or write the file without it (pandas: `index=False`)" if unnamed == [1] else "; give them names"


def _other_delimiter(header: str, row: str, delimiter: str) -> str:
    """Return what is wrong when the first lines of a file tell of another delimiter, or an empty string."""
    if found := re.fullmatch(r"sep=(.)", header, re.IGNORECASE):
        other = "" if found[1] == delimiter else f", and set `delimiter` to {found[1]!r}"
        return f"expected a header row, got Excel's line {header!r}; delete this line{other}"
    marks = [mark for mark in DELIMITERS if 0 < header.count(mark) == row.count(mark)]
    if delimiter in header or not marks:
        return ""
    return (
        f"expected names separated by {delimiter!r}, got {header[:200]!r}, as if by {marks[0]!r}; set `delimiter` to "
        f"that, or save the file with {delimiter!r}"
    )


def guess_delimiter(path: str | os.PathLike[str]) -> str:
    """Return the character between the names of the header: a comma unless only another one parts them."""
    return _guessed(_first_line(os.fspath(path)))


def refuse_delimiter(path: str | os.PathLike[str], delimiter: str, known: Container[str]) -> None:
    """Raise DataError where the header has `known` names only if parted by another mark than the model's delimiter."""
    header = _first_line(os.fspath(path))
    mark = _guessed(header)
    whole, others = _parted(header, delimiter), _parted(header, mark)
    if len(whole) == 1 < len(others) and whole[0] not in known and any(name in known for name in others):
        raise DataError(
            f"{path}: looks separated by {mark!r}, the model was trained with {delimiter!r}; save the file with "
            f"{delimiter!r} between its cells"
        )


def _guessed(header: str) -> str:
    return "," if len(_parted(header, ",")) > 1 else max(DELIMITERS, key=lambda mark: len(_parted(header, mark)))


def _first_line(path: str) -> str:
    """Return the first line of a file; nothing of what cannot be read, which reading it as a table tells."""
    try:
        with _open_text(path) as file:
            return file.readline(1 << 20)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return ""


def _parted(line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark), [])
    except csv.Error:
        return []


def _check_shape(path: str, names: tuple[str, ...], records: _Records) -> tuple[int, np.ndarray, np.ndarray]:
    """Return rows, changes and offsets of the layout of `records`, the header first; DataError naming ragged rows."""
    index, offset = -1, 0
    changes, ragged = [], []
    for cells, lines in records:
        cells = np.maximum(cells, 1) if len(names) == 1 else cells
        rows = np.arange(index, index + len(lines))
        offsets = lines - rows
        changed = np.diff(offsets, prepend=offset) != 0
        changes.append(np.stack([rows[changed], offsets[changed]]))
        wrong = cells != len(names)
        ragged.append(np.stack([rows[wrong], lines[wrong], cells[wrong]]))
        index, offset = index + len(lines), offsets[-1]
    faults = np.concatenate(ragged, axis=1)
    while faults.shape[1] and faults[2, -1] == 0 and faults[0, -1] == index - 1:
        faults, index = faults[:, :-1], index - 1
    if faults.shape[1]:
        raise DataError(_ragged_rows(path, len(names), faults[1:]))
    return index, *np.concatenate(changes, axis=1)


def _ragged_rows(path: str, expected: int, faults: np.ndarray) -> list[str]:
    problems = [
        f"{path}:{line}: expected {expected} cells, got {cells or 'a blank line'}"
        for line, cells in faults[:, :SHOWN].T.tolist()
    ]
    more = faults.shape[1] - SHOWN
    return [*problems, f"{path}: and {more:,} more rows with a wrong number of cells"] if more > 0 else problems


def _plain_records(path: str, delimiter: str) -> _Records:
    """Yield (cells, line) of every line of a file without quotes; a blank line has 0 cells."""
    line = 1
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES) + file.readline():
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
            ends = np.flatnonzero(data == ord("\n"))
            delimiters = np.searchsorted(np.flatnonzero(data == ord(delimiter)), ends)
            blank = np.diff(ends, prepend=-1) == 1
            yield np.where(blank, 0, np.diff(delimiters, prepend=0) + 1), np.arange(line, line + len(ends))
            line += len(ends)


def _quoted_records(path: str, delimiter: str) -> _Records:
    """Yield (cells, first line) of every record of a file with quotes; a blank line has 0 cells."""
    with closing(_csv_rows(path, delimiter)) as rows:
        shapes = ((len(row), line) for row, line in rows)
        while batch := list(islice(shapes, CSV_BATCH_ROWS)):
            cells, lines = np.array(batch, dtype=np.int64).T
            yield cells, lines


def _csv_rows(path: str, delimiter: str) -> Generator[tuple[list[str], int]]:
    """Yield every record with the line where it starts; DataError where the quotes are wrong."""
    line = 1
    with _open_text(path) as file, _long_cells():
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                yield row, line
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(_quote_fault(path, delimiter, line, str(error))) from error


def _quote_fault(path: str, delimiter: str, line: int, reason: str) -> str:
    if "unexpected end of data" in reason:
        return f"{path}:{_open_quote_line(path, delimiter, line)}: a quote is opened here and never closed"
    if "field larger" in reason:
        return f"{path}:{line}: a cell of this row is longer than {CELL_LIMIT:,} characters; is a quote left open?"
    if "expected after" in reason:
        return f'{path}:{line}: text follows a closing quote in this row; write "" for a quote inside a quoted cell'
    return f"{path}:{line}: {reason}"


def _open_quote_line(path: str, delimiter: str, line: int) -> int:
    """Return the line on which the last cell starts of the record that starts on `line` and runs to the file's end."""
    with _open_text(path) as file, _long_cells():
        reader = csv.reader(islice(file, line - 1, None), delimiter=delimiter)
        last_cell = next(reader)[-1]
        return line + reader.line_num - max(1, sum(1 for _ in io.StringIO(last_cell, newline="")))


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what the operating system or gzip says about the file into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: expected a CSV file, got a directory") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got a damaged or different one ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: str) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb")


def _open_text(path: str) -> IO[str]:
    return io.TextIOWrapper(cast(io.BufferedReader, _open(path)), encoding="utf-8-sig", newline="")
