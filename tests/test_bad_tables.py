"""Bad tables on their way through the front doors: each has a clear error, or a behaviour that is stated here.

What the reader of files says of quotes, widths and bytes is tested in depth in `test_table.py`, the policies in
`test_quarantine.py`. Here the same faults come through a config, and tables to predict through the commands.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mmjax import evaluate, predict
from mmjax.config import Policy
from mmjax.data.prepare import prepare
from mmjax.errors import DataError
from mmjax.train import FitResult, fit
from tests.doors import HEADER, Ended, door, table_config, table_rows, write_csv
from tests.rough import roughly

ROWS = [(f"{i % 7}.5", ("blue", "red")[i % 2], "ab"[i % 2]) for i in range(30)]
LINES = ["size,colour,kind", *map(",".join, ROWS)]
TEXT = "\n".join(LINES) + "\n"
SEMICOLONS = TEXT.replace(",", ";")
NUL = "a NUL byte; the file is damaged, binary or UTF-16; save it as UTF-8"
TWO_CLASSES = "target column 'kind': expected at least two classes, got 'a'"
UNPARTED = (
    "t.csv:1: expected names separated by ',', got {!r}, as if by {!r}; set `delimiter` to that, or save the file "
    "with ','"
)


def prepared(folder: Path, data: str | bytes, **settings: Any):
    path = folder / "t.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return prepare(table_config(path, **({"id_column": None} | settings)))


REFUSED: dict[str, tuple[str | bytes, list[str]]] = {
    "empty file": (b"", ["t.csv: expected a header row, got an empty file"]),
    "a byte order mark only": ("\ufeff", ["t.csv: expected a header row, got an empty file"]),
    "header only": (LINES[0] + "\n", ["t.csv: expected rows below the header, got none"]),
    "header and blank lines": (LINES[0] + "\n\n\n", ["t.csv: expected rows below the header, got none"]),
    "blank line first": (
        "\n" + TEXT,
        ["t.csv:1: expected a name for every column, got none at position 1 of the header"],
    ),
    "blank line between": (TEXT.replace("\n0.5", "\n\n0.5", 1), ["t.csv:2: expected 3 cells, got a blank line"]),
    "duplicated header": (
        TEXT.replace("colour", "size", 1), ["t.csv:1: expected different column names, got 'size' at positions 1, 2"]
    ),
    "no header": ("\n".join(LINES[1:]), ["target_column: no column 'kind'; the columns are 0.5, blue, a"]),
    "short row": (TEXT.replace("red,", "", 1), ["t.csv:3: expected 3 cells, got 2"]),
    "long row": (TEXT.replace("red,", "red,x,", 1), ["t.csv:3: expected 3 cells, got 4"]),
    "every row longer by one": (
        "\n".join([LINES[0], *(f"{i},{line}" for i, line in enumerate(LINES[1:3]))]),
        ["t.csv:2: expected 3 cells, got 4", "t.csv:3: expected 3 cells, got 4"],
    ),
    "quote never closed": (TEXT.replace("red", '"red', 1), ["t.csv:3: a quote is opened here and never closed"]),
    "text after a quote": (
        TEXT.replace("red", '"re"d', 1),
        ['t.csv:3: text follows a closing quote in this row; write "" for a quote inside a quoted cell'],
    ),
    "latin-1": (
        TEXT.replace("red", "rosé").encode("latin-1"),
        ["t.csv:3: expected UTF-8, got byte 0xe9 (at byte 35 of the file); convert the file to UTF-8"],
    ),
    "UTF-16 with a mark": (TEXT.encode("utf-16"), [f"t.csv:1: {NUL}"]),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), [f"t.csv:1: {NUL}"]),
    "UTF-16, the other way round": (TEXT.encode("utf-16-be"), [f"t.csv:1: {NUL}"]),
    "NUL byte": (TEXT.replace("red", "re\0d", 1), [f"t.csv:3: {NUL}"]),
    "a workbook": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00", [f"t.csv:1: {NUL}"]),
    "semicolons": (SEMICOLONS, [UNPARTED.format("size;colour;kind", ";")]),
    "semicolons and decimal commas": (SEMICOLONS.replace(".", ","), [UNPARTED.format("size;colour;kind", ";")]),
    "tabs": (TEXT.replace(",", "\t"), [UNPARTED.format("size\tcolour\tkind", "\t")]),
    "Excel's sep=;": (
        "sep=;\n" + SEMICOLONS,
        ["t.csv:1: expected a header row, got Excel's line 'sep=;'; delete this line, and set `delimiter` to ';'"],
    ),
    "Excel's sep=,": (
        "sep=,\n" + TEXT, ["t.csv:1: expected a header row, got Excel's line 'sep=,'; delete this line"]
    ),
    "single class": (TEXT.replace(",b", ",a"), [TWO_CLASSES]),
    "single row of each": (
        "\n".join(LINES[:3]),
        ["split: expected rows for every part with a share (train 0.7, validation 0.1, test 0.2), got 2 rows; add "
         "rows"],
    ),
    "nothing but the target": (
        "kind\n" + "a\nb\n" * 9,
        ["expected at least one column to learn from, got none: 'kind' is ignored (the target)"],
    ),
    "nothing but missing cells": (
        TEXT.replace("red", "").replace("blue", "NA").replace(".5", "").replace("\n0", "\n")
        .replace("\n1", "\n").replace("\n2", "\n").replace("\n3", "\n").replace("\n4", "\n").replace("\n5", "\n")
        .replace("\n6", "\n"),
        ["expected at least one column to learn from, got none: 'size' is constant (every cell is missing); 'colour' "
         "is constant (every cell is missing); 'kind' is ignored (the target)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_table_is_refused_in_one_clear_error(tmp_path: Path, data: str | bytes, expected: list[str]) -> None:
    for policy in ("fail", "drop", "report"):
        with pytest.raises(DataError) as caught:
            prepared(tmp_path, data, on_invalid=policy)
        assert [line.replace(f"{tmp_path}/", "") for line in caught.value.problems] == expected


def test_a_delimiter_of_another_kind(tmp_path: Path) -> None:
    assert len(prepared(tmp_path, SEMICOLONS, delimiter=";").names) == 30
    with pytest.raises(DataError, match=r"expected names separated by ';', got 'size,colour,kind', as if by ','"):
        prepared(tmp_path, TEXT, delimiter=";")
    with pytest.raises(DataError, match=r"got Excel's line 'sep=;'; delete this line$"):
        prepared(tmp_path, "sep=;\n" + SEMICOLONS, delimiter=";")


TAKEN = {
    "byte order mark": "\ufeff" + TEXT,
    "CRLF": TEXT.replace("\n", "\r\n"),
    "lone CR": TEXT.replace("\n", "\r"),
    "all three ends": TEXT.replace("\n", "\r\n", 5).replace("b\n", "b\r", 3),
    "no last line end": TEXT.rstrip("\n"),
    "blank lines at the end": TEXT + "\n\n",
    "every cell quoted": "\n".join('"' + line.replace(",", '","') + '"' for line in LINES),
}


@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN.keys())
def test_the_same_rows_written_otherwise_are_the_same(tmp_path: Path, data: str) -> None:
    assert prepared(tmp_path, data).fingerprint == prepared(tmp_path, TEXT).fingerprint


def test_cells_are_taken_as_they_stand(tmp_path: Path) -> None:
    odd = ("x" * 300_000, 're"d', "'red'", "re\x01d", "\u200bred")
    found = prepared(tmp_path, TEXT.replace("\n0.5,blue", "\n0.5," + odd[0], 1).replace("1.5,red", "1.5," + odd[1]))
    assert {len(text) for text in found.schema.column("colour").vocabulary} <= {3, 4, 300_000}
    for text in odd[1:]:
        assert text in prepared(tmp_path, TEXT.replace("red", text)).schema.column("colour").vocabulary


def test_a_column_of_gaps_is_left_out_and_told(tmp_path: Path) -> None:
    found = prepared(tmp_path, TEXT.replace("red", "").replace("blue", "NA"))
    assert any("left out" in f.what and "'colour': every cell is missing" in f.examples for f in found.findings)
    assert [column.name for column in found.schema.features] == ["size"]


@pytest.mark.parametrize("policy", ["drop", "report"])
def test_targets_with_gaps(tmp_path: Path, policy: Policy) -> None:
    data = TEXT.replace(",b\n", ",\n", 2)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, data)
    assert caught.value.problems == (
        (
            "target column 'kind': expected a value in every row, got 2 missing (line 3, 5); remove these "
            "rows, or set on_invalid to drop"
        ),
    )
    found = prepared(tmp_path, data, on_invalid=policy)
    assert (len(found.names), [entry.name for entry in found.quarantined]) == (28, ["3", "5"])
    assert found.notes[0].endswith("t.csv: dropped 2 of 30 rows without a value of 'kind', the first on line 3")
    with pytest.raises(DataError) as caught:  # all of one class are without an answer
        prepared(tmp_path, TEXT.replace(",b\n", ",\n"), on_invalid=policy)
    assert caught.value.problems == (TWO_CLASSES,)


# ---- to be predicted

RULES = {
    "properties": {
        "size": {"type": "number", "minimum": -9, "maximum": 9},
        "colour": {"enum": ["red", "green", "blue"]},
        "open": {"pattern": "^(yes|no)$"},
        "when": {"format": "date"},
    },
    "required": ["when"],
}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A model of a table with a schema file."""
    home = tmp_path_factory.mktemp("ruled")
    (home / "s.json").write_text(json.dumps(RULES))
    table = write_csv(home / "t.csv", HEADER, table_rows(60))
    config = table_config(table, schema=str(home / "s.json"))
    with roughly():
        return fit(config, runs_dir=home / "runs", registry=None)


def predicted(capsys, result: FitResult, source: Path) -> Ended:
    output = source.with_name("out.csv")
    return door(capsys, predict.command, "--model", result.bundle, "--input", source, "--output", output, "--json")


def with_columns(path: Path, *names: str) -> Path:
    """Six rows with these columns, doubled and unknown ones among them."""
    rows = [tuple(dict(zip(HEADER, row, strict=True)).get(name, "1") for name in names) for row in table_rows(6)]
    return write_csv(path, names, rows)


ADD_IT = "got none of that name; add it, empty (in JSON null) where its value is not known"
COLUMNS = {
    "missing": (("size", "colour", "kind"), [f"expected column 'open', {ADD_IT}",
                                             "expected column 'when', got none of that name; add it"]),
    "misspelt": (("size", "color", "open", "when"), [
        f"expected column 'colour', {ADD_IT}",
        "unknown column 'color'; rename or remove it; did you mean 'colour'?"]),
    "extra": (("size", "colour", "open", "when", "more"), ["unknown column 'more'; rename or remove it"]),
    "doubled": (("size", "colour", "open", "when", "size"), [
        "1: expected different column names, got 'size' at positions 1, 5"]),
}  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), COLUMNS.values(), ids=COLUMNS.keys())
def test_columns_of_a_table_to_predict(
    ruled: FitResult, tmp_path: Path, capsys, names: tuple[str, ...], expected: list[str]
) -> None:
    source = with_columns(tmp_path / "in.csv", *names)
    ended = predicted(capsys, ruled, source)
    assert ended.code == 3
    problems = ended.document["error"]["message"].splitlines()
    assert [line.removeprefix(f"{source}:").strip() for line in problems] == expected
    assert not (tmp_path / "out.csv").exists()


def test_columns_in_another_order_give_the_same_answers(ruled: FitResult, tmp_path: Path, capsys) -> None:
    answers = []
    for names in (HEADER, HEADER[::-1], ("when", "open", "colour", "size", "id")):
        ended = predicted(capsys, ruled, with_columns(tmp_path / "in.csv", *names))
        gaps = f"{tmp_path / 'in.csv'}: missing cells, known to the model as such: size 2"
        assert (ended.code, ended.document["notes"]) == (0, [gaps])
        answers.append((tmp_path / "out.csv").read_bytes())
    assert answers[0] == answers[1] == answers[2]


def test_names_with_odd_characters_read_back(ruled: FitResult, tmp_path: Path) -> None:
    names = ["a\rb", "c,d", 'e"f', "g\nh", " i ", ""]
    rows = [(name, *row[1:]) for name, row in zip(names, table_rows(6), strict=True)]
    predict.predict_file(ruled.predictor, write_csv(tmp_path / "in.csv", HEADER, rows), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["id", *names]


PREDICTED: dict[str, tuple[str | bytes, str]] = {
    "header only": (",".join(HEADER), "in.csv: expected at least one row, got a header only"),
    "empty": (b"", "in.csv: expected a header row, got an empty file"),
    "UTF-16": (",".join(HEADER).encode("utf-16"), f"in.csv:1: {NUL}"),
    "ragged": (",".join(HEADER) + "\n1,2\n", "in.csv:2: expected 6 cells, got 2"),
    "semicolons": (
        ";".join(HEADER) + "\n" + ";" * 5,
        "in.csv: looks separated by ';', the model was trained with ','; save the file with ',' between its cells",
    ),
    "semicolons and a cell of two lines with commas": (
        ";".join(HEADER) + '\n1;2;"a\nb, c";4;5;6\n',
        "in.csv: looks separated by ';', the model was trained with ','; save the file with ',' between its cells",
    ),
}


@pytest.mark.parametrize(("data", "expected"), PREDICTED.values(), ids=PREDICTED.keys())
def test_a_bad_table_to_predict(ruled: FitResult, tmp_path: Path, capsys, data: str | bytes, expected: str) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(data if isinstance(data, bytes) else data.encode())
    for command in ("predict", "evaluate"):
        if command == "predict":
            ended = predicted(capsys, ruled, source)
        else:
            ended = door(capsys, evaluate.command, "--model", ruled.bundle, "--data", source, "--json")
            expected = expected.replace("at least one row, got a header only", "rows below the header, got none")
        assert (ended.code, ended.document["error"]["message"]) == (3, f"{tmp_path}/{expected}")


def test_the_rules_of_the_schema_file_are_told_where_answers_are_given(
    ruled: FitResult, tmp_path: Path, capsys
) -> None:
    cells = {4: ("size", "10"), 5: ("size", "-1e3"), 6: ("colour", "mauve"), 7: ("open", "Yes"), 8: ("when", "NA")}
    rows = [list(row) for row in table_rows(12)]
    for row, (column, text) in cells.items():
        rows[row][HEADER.index(column)] = text
    source = write_csv(tmp_path / "in.csv", HEADER, [tuple(row) for row in rows])
    expected = [
        f"{source}: column 'size': expected a number >= -9 and <= 9; 2 cells differ, the first on line 6; ",
        f"{source}: column 'colour': expected one of 'red', 'green', 'blue'; 1 cells differ, the first on line 8; ",
        f"{source}: column 'open': expected text matching '^(yes|no)$'; 1 cells differ, the first on line 9; ",
        f"{source}: column 'when': expected a value (required); 1 cells differ, the first on line 10; ",
    ]
    gaps = f"{source}: missing cells, known to the model as such: size 1, when 1"
    made = predicted(capsys, ruled, source)
    assert made.document["notes"] == [gaps, *(line + "predicted all the same" for line in expected)]
    assert all(line + "predicted all the same" in made.err for line in expected)
    assert (made.code, made.document["rows"], made.document["unknown"]) == (0, 12, {"colour": 1})
    assert "column 'colour': 1 cell of a category unknown" not in made.err
    scored = door(capsys, evaluate.command, "--model", ruled.bundle, "--data", source, "--json")
    assert scored.document["notes"] == [gaps, *(line + "scored all the same" for line in expected)]
    assert (scored.code, scored.document["rows"]) == (0, 12)


def test_rules_are_counted_over_all_chunks_of_a_long_table(ruled: FitResult, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(predict, "CHUNK_ROWS", 5)
    rows = [(*row[:1], "99", *row[2:]) if i in (3, 11, 17) else row for i, row in enumerate(table_rows(18))]
    source = write_csv(tmp_path / "in.csv", HEADER, rows)
    written = predict.predict_file(ruled.predictor, source, tmp_path / "out.csv")
    assert written.notes == (
        f"{source}: missing cells, known to the model as such: size {sum(row[1] == '?' for row in rows)}",
        f"{source}: column 'size': expected a number >= -9 and <= 9; 3 cells differ, the first on line 5; "
        "predicted all the same",
    )
