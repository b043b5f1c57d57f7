import csv
import gzip
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.data import table
from mmjax.data.table import iter_table, read_table
from mmjax.errors import DataError


def write(folder: Path, data: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def problems_of(path: str, delimiter: str = ",") -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_table(path, delimiter=delimiter)
    return tuple(line.replace(path, "t.csv") for line in caught.value.problems)


def as_rows(found: table.Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.tolist() for column in found.columns.values()), strict=True)]


PARSERS = ["csv", "pandas"]


@pytest.fixture(params=PARSERS)
def parser(request, monkeypatch):
    """Both ways to read cells: the csv module for small tables and pandas for large ones."""
    monkeypatch.setattr(table, "PANDAS_CELLS", 0 if request.param == "pandas" else 10**9)
    return request.param


def test_cells_stay_exactly_as_written(tmp_path, parser):
    text = "a,b,c\n001, x ,NA\n2e+05,,None\n1e400,NULL,nan\n"
    found = read_table(write(tmp_path, text))
    assert list(found.columns) == ["a", "b", "c"]
    assert as_rows(found) == [["001", " x ", "NA"], ["2e+05", "", "None"], ["1e400", "NULL", "nan"]]
    assert found.lines.tolist() == [2, 3, 4]
    assert found.lines.dtype == np.int64
    for column in found.columns.values():
        assert column.dtype == object
        assert {type(cell) for cell in column} == {str}


def test_quotes_newlines_in_cells_and_the_lines_where_rows_start(tmp_path, parser):
    text = 'a,"b\nb"\n1,"two\nlines"\n"3,3","say ""hi"""\n4,5" disk\n'
    found = read_table(write(tmp_path, text))
    assert list(found.columns) == ["a", "b\nb"]
    assert as_rows(found) == [["1", "two\nlines"], ["3,3", 'say "hi"'], ["4", '5" disk']]
    assert found.lines.tolist() == [3, 5, 6]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoted", [False, True])
def test_line_ends_and_byte_order_mark(tmp_path, parser, newline, quoted):
    mark = '"' if quoted else ""
    text = "\ufeff" + newline.join([f"{mark}ä{mark},b", "1,ü", "3,4", "5,6"])
    found = read_table(write(tmp_path, text))
    assert list(found.columns) == ["ä", "b"]
    assert as_rows(found) == [["1", "ü"], ["3", "4"], ["5", "6"]]
    assert found.lines.tolist() == [2, 3, 4]


def test_compressed_and_other_delimiters(tmp_path, parser):
    compressed = write(tmp_path, gzip.compress(b"a;b\n1,5;2\n"), "t.csv.gz")
    assert as_rows(read_table(compressed, delimiter=";")) == [["1,5", "2"]]
    assert as_rows(read_table(Path(write(tmp_path, "a\tb\n1\t2\n")), delimiter="\t")) == [["1", "2"]]


def test_blank_lines(tmp_path, parser):
    assert as_rows(read_table(write(tmp_path, "a,b\n1,2\n\n\n"))) == [["1", "2"]]
    assert as_rows(read_table(write(tmp_path, 'a,b\n1,"2"\n\n'))) == [["1", "2"]]
    assert as_rows(read_table(write(tmp_path, "a\n1\n\n3\n"))) == [["1"], [""], ["3"]]
    assert as_rows(read_table(write(tmp_path, 'a\n"1"\n\n3\n'))) == [["1"], [""], ["3"]]
    for quote in ("", '"'):
        assert problems_of(write(tmp_path, f"a,b\n\n{quote}1{quote},2\n   \n3,4\n")) == (
            "t.csv:2: expected 2 cells, got a blank line",
            "t.csv:4: expected 2 cells, got 1",
        )


@pytest.mark.parametrize("quote", ["", '"'])
def test_ragged_rows_are_all_listed_then_counted(tmp_path, quote):
    path = write(tmp_path, f"a,b\n{quote}1{quote},2\n3\n4,5,6\n7,8\n")
    assert problems_of(path) == ("t.csv:3: expected 2 cells, got 1", "t.csv:4: expected 2 cells, got 3")
    path = write(tmp_path, f"a,b\n{quote}1{quote},2\n" + "3\n" * 25)
    found = problems_of(path)
    assert len(found) == 21
    assert found[-1] == "t.csv: and 5 more rows with a wrong number of cells"


def test_every_row_one_cell_too_long_is_refused(tmp_path):
    assert len(problems_of(write(tmp_path, "a,b\n1,2,\n3,4,\n"))) == 2


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "t.csv: expected a header row, got an empty file"),
        ("\ufeff", "t.csv: expected a header row, got an empty file"),
        ("a,b\n", "t.csv: expected rows below the header, got none"),
        ("a,b\n\n", "t.csv: expected rows below the header, got none"),
        (
            "a,,b, \n1,2,3,4\n",
            "t.csv:1: expected a name for every column, got none at position 2, 4 of the header; give them names",
        ),
        (
            ",a,b\n0,1,2\n",
            "t.csv:1: expected a name for every column, got none at position 1 of the header; name it, or write the "
            "file without it (pandas: `index=False`)",
        ),
        ("\na,b\n", "t.csv:1: expected a name for every column, got none at position 1 of the header"),
        ("a,b,a\n1,2,3\n", "t.csv:1: expected different column names, got 'a' at positions 1, 3"),
        ("a,b\n1,\0\n", "t.csv:2: a NUL byte; the file is damaged, binary or UTF-16; save it as UTF-8"),
        (
            "a,b\n1,é\n".encode("latin-1"),
            "t.csv:2: expected UTF-8, got byte 0xe9 (at byte 6 of the file); convert the file to UTF-8",
        ),
        (
            "é\n1\n".encode("utf-16"),
            "t.csv:1: a NUL byte; the file is damaged, binary or UTF-16; save it as UTF-8",
        ),
        ('a,b\n1,2\n3,"4\n5,6\n', "t.csv:3: a quote is opened here and never closed"),
        ('a,b\n"x\ny","4\n5,6', "t.csv:3: a quote is opened here and never closed"),
        ('a,"b\n1,2\n', "t.csv:1: a quote is opened here and never closed"),
        (
            'a,b\n1,"2"x\n',
            't.csv:2: text follows a closing quote in this row; write "" for a quote inside a quoted cell',
        ),
    ],
)
def test_faults_name_the_line_and_what_to_do(tmp_path, data, expected):
    assert problems_of(write(tmp_path, data)) == (expected,)


def test_cells_beyond_the_limit_of_the_csv_module(tmp_path, parser, monkeypatch):
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert as_rows(read_table(write(tmp_path, f'a,b\n"{long}",2\n'))) == [[long, "2"]]
    assert csv.field_size_limit() == before
    monkeypatch.setattr(table, "CELL_LIMIT", 100)
    assert problems_of(write(tmp_path, f'a,b\n1,2\n"{long}",2\n')) == (
        "t.csv:3: a cell of this row is longer than 100 characters; is a quote left open?",
    )


def test_files_that_cannot_be_read(tmp_path):
    assert problems_of(str(tmp_path / "none.csv")) == ("t.csv: no such file",)
    assert problems_of(str(tmp_path)) == ("t.csv: expected a CSV file, got a directory",)
    whole = gzip.compress(b"a,b\n1,2\n" * 1000)
    for data in (b"a,b\n1,2\n", whole[:-20], whole[:20] + b"\xff" * 8 + whole[28:]):
        path = write(tmp_path, data, "bad.csv.gz")
        assert "expected a gzip file, got a damaged or different one" in problems_of(path)[0]
    for delimiter in ("", ",,", '"', "\n", "é"):
        assert "expected one ASCII character" in problems_of(write(tmp_path, "a,b\n1,2\n"), delimiter)[0]


def test_streaming_gives_the_same_rows_and_lines(tmp_path, parser, monkeypatch):
    monkeypatch.setattr(table, "BLOCK_BYTES", 16)
    monkeypatch.setattr(table, "CSV_BATCH_ROWS", 3)
    for text in (
        "a,b\n" + "".join(f"{i},x{i}\n" for i in range(23)) + "\n",
        "a,b\n" + "".join(f'{i},"x\n{i}"\n' if i % 5 == 2 else f"{i},y\n" for i in range(23)),
    ):
        path = write(tmp_path, text)
        whole = read_table(path)
        pieces = list(iter_table(path, chunk_rows=7))
        assert [len(piece.lines) for piece in pieces] == [7, 7, 7, 2]
        assert [row for piece in pieces for row in as_rows(piece)] == as_rows(whole)
        assert np.concatenate([piece.lines for piece in pieces]).tolist() == whole.lines.tolist()
        starts = io.StringIO(text).readlines()
        assert all(starts[line - 1].startswith(f"{i},") for i, line in enumerate(whole.lines))


def test_streaming_refuses_before_the_first_row_and_yields_nothing_for_a_header(tmp_path):
    assert list(iter_table(write(tmp_path, "a,b\n"))) == []
    with pytest.raises(DataError, match=r"t\.csv:4: expected 2 cells, got 1"):
        next(iter_table(write(tmp_path, "a,b\n1,2\n3,4\n5\n"), chunk_rows=1))


cells = st.text(alphabet=st.sampled_from('ab0 ,;"\n\r\té'), max_size=4)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=6))
@example(rows=[["\r", '"'], ['"a', "b\n"]])
def test_what_the_csv_module_writes_comes_back_by_either_parser(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("law") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["first", "second"], *rows])
    layout = table.read_layout(path)
    for read in (table._cells_by_csv, table._cells_by_pandas):
        (columns,) = read(layout, 100)
        assert [list(row) for row in zip(*columns, strict=True)] == rows


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.sampled_from('ab1,"\n\r '), max_size=30))
def test_any_text_reads_the_same_by_either_parser_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("law") / "t.csv"
    path.write_bytes(b"x,y\n" + text.encode())
    try:
        layout = table.read_layout(path)
    except DataError:
        return
    found = [list(read(layout, 4)) for read in (table._cells_by_csv, table._cells_by_pandas)]
    by_csv, by_pandas = ([[list(column) for column in chunk] for chunk in chunks] for chunks in found)
    assert by_csv == by_pandas
    assert sum(len(chunk[0]) for chunk in by_csv) == layout.rows


def test_small_tables_do_not_import_pandas(tmp_path):
    path = write(tmp_path, "a,b\n1,2\n")
    code = (
        f"import sys; from mmjax.data.table import read_table; read_table({path!r}); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
