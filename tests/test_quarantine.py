"""What is left out and why: the policies over real files, and the file that lists it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Policy, TabularData
from mmjax.data.prepare import prepare
from mmjax.data.prepared import Prepared, Quarantined
from mmjax.data.quarantine import find_unanswered, quarantine_lines, write_quarantine
from mmjax.errors import DataError
from tests.doors import HEADER, image_config, table_config, table_rows, write_csv, write_images

POLICIES: tuple[Policy, ...] = ("drop", "report")
SCHEMA_FILE = {
    "properties": {
        "size": {"type": "number", "maximum": 100},
        "colour": {"enum": ["green", "red", "blue"]},
        "open": {"pattern": "^(yes|no)$"},
        "when": {"format": "date"},
        "kind": {"enum": ["c", "b", "a"]},
    },
    "required": ["kind", "when"],
}


def changed(rows: list[tuple[str, ...]], *changes: tuple[int, str, str]) -> list[tuple[str, ...]]:
    """The rows with some cells (row, column, text) replaced."""
    cells = [list(row) for row in rows]
    for row, column, text in changes:
        cells[row][HEADER.index(column)] = text
    return [tuple(row) for row in cells]


BROKEN = (
    (4, "size", "101"),
    (9, "colour", "mauve"),
    (12, "open", "perhaps"),
    (15, "when", ""),
    (20, "size", "big"),
    (21, "when", "31.12.2024"),
    (22, "kind", "d"),
    (23, "kind", "?"),
    (24, "size", "102"),
    (24, "kind", ""),
)
READABLE = ["6", "11", "14", "17"]


def ruled(folder: Path, policy: Policy, *changes: tuple[int, str, str]) -> Prepared:
    (folder / "s.json").write_text(json.dumps(SCHEMA_FILE))
    path = write_csv(folder / "t.csv", HEADER, changed(table_rows(80), *changes))
    return prepare(table_config(path, schema=str(folder / "s.json"), on_invalid=policy))


def test_each_policy_does_what_it_says_with_every_kind_of_fault(tmp_path: Path) -> None:
    dropped, reported = (ruled(tmp_path, policy, *BROKEN) for policy in POLICIES)
    bad = {f"r{row}" for row, _, _ in BROKEN}
    kept = {f"r{row}" for row, _, _ in BROKEN[:4]}
    everything = {f"r{i}" for i in range(80)}
    assert set(dropped.names) == everything - bad
    assert set(reported.names) == everything - bad | kept
    first = [("25", "kind", "?"), ("26", "kind", "")]
    rules = [(str(row + 2), column, text) for row, column, text in BROKEN[:7]]
    for found in (dropped, reported):
        assert [entry[:3] for entry in found.quarantined] == first + rules
    assert not any(entry.kept for entry in dropped.quarantined)
    assert [entry.name for entry in reported.quarantined if entry.kept] == READABLE
    assert [entry.reason for entry in reported.quarantined] == [
        "expected a value of 'kind'",
        "expected a value of 'kind'",
        "expected a number <= 100",
        "expected one of 'green', 'red', 'blue'",
        "expected text matching '^(yes|no)$'",
        "expected a value (required)",
        "expected a number <= 100",
        "expected a date (ISO 8601)",
        "expected one of 'c', 'b', 'a'",
    ]
    path = tmp_path / "t.csv"
    answers = f"{path}: dropped 2 of 80 rows without a value of 'kind', the first on line 25"
    assert dropped.notes[:2] == (answers, f"{path}: dropped 7 of 78 rows that violate the schema")
    assert reported.notes[:2] == (
        answers,
        f"{path}: kept 4 and dropped 3 of 78 rows that violate the schema; those dropped cannot be encoded",
    )
    with pytest.raises(DataError, match=r"'kind': expected a value in every row, got 2 missing \(line 25"):
        ruled(tmp_path, "fail", *BROKEN)
    with pytest.raises(DataError) as caught:
        ruled(tmp_path, "fail", *BROKEN[:7])
    assert [line.split(": column")[0] for line in caught.value.problems] == [
        f"{path}:{row + 2}" for row, _, _ in BROKEN[:7]
    ]


def test_what_is_kept_counts_as_unknown_or_missing(tmp_path: Path) -> None:
    found = ruled(tmp_path, "report", *BROKEN)
    at = found.names.tolist().index
    code = [column.name for column in found.schema.category_columns].index
    assert found.batch["category"][at("r9"), code("colour")] == 0
    assert found.batch["category"][at("r12"), code("open")] in (0, 2)  # as any text: known if it was trained on
    assert found.batch["numeric"][at("r4"), 0] == 101.0
    assert np.isnan(found.batch["numeric"][at("r15"), 1:]).all()


def test_a_sound_table_has_no_quarantine(tmp_path: Path) -> None:
    for policy in ("fail", *POLICIES):
        assert ruled(tmp_path, policy).quarantined == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_regression_row_needs_a_number_and_a_weight(tmp_path: Path, policy: Policy) -> None:
    rows = [(f"{i % 9}.5", "1", f"{i / 7:.3f}") for i in range(60)]
    rows[3] = (*rows[3][:2], "much")
    rows[8] = (*rows[8][:2], "NA")
    rows[9] = (rows[9][0], "-1", rows[9][2])
    rows[10] = (rows[10][0], "", "1e99")
    path = write_csv(tmp_path / "t.csv", ("x", "w", "y"), rows)
    shape = {"target_column": "y", "weight_column": "w", "id_column": None, "task": "regression"}
    found = prepare(table_config(path, on_invalid=policy, **shape))
    assert len(found.names) == 56
    assert found.notes[:3] == (
        f"{path}: dropped 2 of 60 rows without a number as 'y', the target, the first on line 5",
        f"{path}: dropped 1 of 60 rows without a value of 'y', the first on line 10",
        f"{path}: dropped 1 of 60 rows without a weight of 0 or more in 'w', the first on line 11",
    )
    assert [entry[:3] for entry in found.quarantined] == [
        ("5", "y", "much"),
        ("10", "y", "NA"),
        ("11", "w", "-1"),
        ("12", "y", "1e99"),
    ]
    with pytest.raises(DataError, match=r"expected a value in every row, got 1 missing \(line 10\)"):
        prepare(table_config(path, **shape))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_table_without_any_answer_is_refused_under_every_policy(tmp_path: Path, policy: Policy) -> None:
    rows = [(*row[:5], "") for row in table_rows(30)]
    path = write_csv(tmp_path / "t.csv", HEADER, rows)
    with pytest.raises(DataError, match="target column 'kind': expected a value in every row, got 30 missing"):
        prepare(table_config(path, on_invalid=policy))


# ---- images


@pytest.mark.parametrize("policy", POLICIES)
def test_images_of_a_list_without_an_answer_or_a_picture(tmp_path: Path, policy: Policy) -> None:
    images = write_images(tmp_path / "i")
    (images / "dark" / "2.png").write_bytes(b"")
    rows = [(f"{s}/{i}.png", s) for s in ("dark", "light") for i in range(8)]
    rows[5], rows[9], rows[12] = (rows[5][0], ""), (rows[9][0], "NA"), ("light/none.png", "light")
    listed = write_csv(images / "l.csv", ("image", "label"), rows)
    found = prepare(image_config(listed, on_invalid=policy))
    assert len(found.names) == 12
    assert [tuple(entry) for entry in found.quarantined] == [
        ("dark/5.png", "label", "", "expected a value of 'label'", False),
        ("light/1.png", "label", "NA", "expected a value of 'label'", False),
        ("dark/2.png", "image", str(images / "dark/2.png"), "is empty", False),
        ("light/none.png", "image", str(images / "light/none.png"), "no such file", False),
    ]
    assert f"{listed}: dropped 2 of 16 rows without a value of 'label', the first is dark/5.png" in found.notes
    assert any(note.startswith("2 of 14 images cannot be read and are left out") for note in found.notes)
    rows[12] = ("light/4.png", "light")
    write_csv(images / "l.csv", ("image", "label"), rows)
    with pytest.raises(DataError, match=r"2 missing|1 of 16 images cannot be read"):
        prepare(image_config(listed))


def test_the_class_of_a_folder_may_be_called_as_a_gap_is(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    (images / "dark").rename(images / "NA")
    with pytest.raises(DataError, match="expected a value in every row, got 8 missing"):
        prepare(image_config(images, on_invalid="drop"))


# ---- the file

FOUND = st.builds(
    Quarantined,
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    column=st.text("a,\"\n'é", max_size=5),
    value=st.text('a,"\r\n;=é', max_size=9),
    reason=st.text("ab ", max_size=5),
    kept=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(FOUND, max_size=5))
def test_the_file_reads_back_as_it_was_written(tmp_path_factory, quarantined: list[Quarantined]) -> None:
    path = tmp_path_factory.mktemp("law") / "quarantine.csv"
    write_quarantine(path, quarantined)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "column", "value", "reason", "kept"]
    assert rows[1:] == [[*found[:4], "yes" if found.kept else "no"] for found in quarantined]


def test_names_that_are_no_text_and_huge_cells_are_written(tmp_path: Path) -> None:
    columns = {"y": np.array(["1", " " * 5000], object)}
    data = TabularData(path="t.csv", target_column="y")
    (long,) = find_unanswered(columns, np.arange(2), "t.csv", data, number=False).quarantined
    assert long.value == " " * 1000 + " ..."
    write_quarantine(tmp_path / "q.csv", [Quarantined("a\udcff.png", "image", "", "is empty", kept=False)])
    assert (tmp_path / "q.csv").read_text() == (
        '"name","column","value","reason","kept"\n"a\\udcff.png","image","","is empty","no"\n'
    )


def test_a_file_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "q.csv").mkdir()
    with pytest.raises(DataError, match=r"q.csv: cannot be written: Is a directory"):
        write_quarantine(tmp_path / "q.csv", [])
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        write_quarantine(tmp_path / "none" / "q.csv", [])
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


def test_a_line_says_where_the_list_is():
    broken = Quarantined("9", "size", "abc", "expected a number", kept=False)
    assert quarantine_lines([], Path("q.csv")) == []
    assert quarantine_lines([broken], Path("q.csv")) == ["quarantine: 1 broken cell or file is listed in q.csv"]
    assert quarantine_lines([broken] * 1200, Path("q.csv")) == [
        "quarantine: 1,200 broken cells or files are listed in q.csv"
    ]
