import json

import numpy as np
import pytest

from mmjax.data.infer import infer_schema
from mmjax.data.schema_file import read_schema_file
from mmjax.data.validate import (
    Broken,
    Violation,
    add_broken,
    broken_notes,
    broken_rules,
    validate_rows,
)
from mmjax.errors import DataError
from mmjax.schema import Column, Schema, Target

LINES = np.arange(2, 8)


def columns(**cells):
    return {name: np.array(found, dtype=object) for name, found in cells.items()}


def schema(*found: Column, **target) -> Schema:
    return Schema(
        target=Target(**({"column": "y", "task": "classification", "classes": ("0", "1")} | target)),
        columns=found,
        missing_markers=("NA",),
    )


def problems_of(rows, contract) -> list[str]:
    with pytest.raises(DataError) as caught:
        validate_rows(rows, contract, LINES, "t.csv", "fail")
    return list(caught.value.problems)


AGE = Column(name="age", kind="numeric", minimum=0, maximum=120, integer=True, required=True)


def test_numbers():
    found = problems_of(columns(age=["1", "-3", "1.5", "old", "NA", "1e9"]), schema(AGE))
    assert found == [
        "t.csv:3: column 'age': expected a whole number >= 0 and <= 120, got '-3'",
        "t.csv:4: column 'age': expected a whole number >= 0 and <= 120, got '1.5'",
        "t.csv:5: column 'age': expected a whole number >= 0 and <= 120, got 'old'",
        "t.csv:6: column 'age': expected a value (required), got 'NA'",
        "t.csv:7: column 'age': expected a whole number >= 0 and <= 120, got '1e9'",
    ]


@pytest.mark.parametrize(
    ("column", "bad", "rule"),
    [
        (Column(name="c", kind="numeric"), "1_0", "a number"),
        (Column(name="c", kind="numeric", minimum=1), "0.5", "a number >= 1"),
        (Column(name="c", kind="numeric", maximum=1), "1.5", "a number <= 1"),
        (Column(name="c", kind="categorical", vocabulary=("1", "2"), fixed_vocabulary=True), "3", "one of '1', '2'"),
        (Column(name="c", kind="text", pattern="^[12]$"), "12", "text matching '^[12]$'"),
        (Column(name="c", kind="datetime", datetime_format="iso"), "1.1.2020", "a date (ISO 8601)"),
        (Column(name="c", kind="datetime", datetime_format="%d.%m.%Y"), "2020-01-01", "a date (%d.%m.%Y)"),
        (Column(name="c", kind="boolean"), "maybe", "true/false or yes/no"),
        (Column(name="c", kind="ignored", required=True), " ", "a value (required)"),
    ],
)
def test_each_rule(column, bad, rule):
    fine = {"datetime": "01.02.2020" if column.datetime_format.startswith("%") else "2020-01-01", "boolean": "Yes"}
    good = fine.get(column.kind, "1")
    rows = columns(c=[good, good, bad, good, good, good])
    got = repr(bad) if bad.strip() else "a missing cell"
    assert problems_of(rows, schema(column)) == [f"t.csv:4: column 'c': expected {rule}, got {got}"]


def test_missing_cells_break_no_rule_but_required_and_a_learnt_vocabulary_binds_nobody():
    free = Column(name="c", kind="categorical", vocabulary=("a",))
    rows = columns(c=["new"] * 6, age=["NA", "", " ", "1", "2", "3"])
    limited = Column(name="age", kind="numeric", minimum=0, pattern="^[0-9]$")
    assert validate_rows(rows, schema(free, limited), LINES, "t.csv", "fail").violations == ()


def test_the_target_is_held_to_its_classes_or_to_numbers():
    y = Column(name="y", kind="ignored")
    rows = columns(y=["0", "1", "2", "", "1", "1"])
    assert problems_of(rows, schema(y)) == [
        "t.csv:4: column 'y': expected one of '0', '1', got '2'",
        "t.csv:5: column 'y': expected a value (required), got a missing cell",
    ]
    rows = columns(y=["0", "1", "x", "-1", "1", "1"])
    assert problems_of(rows, schema(Column(name="y", kind="ignored", minimum=0), task="regression", classes=())) == [
        "t.csv:4: column 'y': expected a number >= 0, got 'x'",
        "t.csv:5: column 'y': expected a number >= 0, got '-1'",
    ]
    absent = validate_rows(columns(z=["1"] * 6), schema(y), LINES, "t.csv", "fail")
    assert absent.keep.all()


def test_twenty_are_listed_and_the_rest_counted():
    rows = columns(age=["-1"] * 30)
    with pytest.raises(DataError) as caught:
        validate_rows(rows, schema(AGE), np.arange(2, 32), "t.csv", "fail")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "t.csv: and 10 more violations of the schema"


def test_drop_and_report_count_what_they_do():
    plan = Column(name="plan", kind="categorical", vocabulary=("a", "b"), fixed_vocabulary=True)
    rows = columns(age=["1", "-3", "200", "4", "", "6"], plan=["a", "c", "b", "b", "b", "d"])
    dropped = validate_rows(rows, schema(AGE, plan), LINES, "t.csv", "drop")
    assert dropped.keep.tolist() == [True, False, False, True, False, False]
    assert dropped.violations[0] == Violation(1, 3, "age", "-3", "a whole number >= 0 and <= 120", True)
    assert [v.row for v in dropped.violations] == [1, 1, 2, 4, 5]
    assert dropped.notes == (
        "t.csv: dropped 4 of 6 rows that violate the schema",
        "column 'age': expected a whole number >= 0 and <= 120; 2 cells differ, the first on line 3",
        "column 'plan': expected one of 'a', 'b'; 2 cells differ, the first on line 3",
        "column 'age': expected a value (required); 1 cells differ, the first on line 6",
    )
    reported = validate_rows(rows, schema(AGE, plan), LINES, "t.csv", "report")
    assert reported.keep.all()
    assert reported.notes[0] == "t.csv: kept 4 of 6 rows that violate the schema"
    assert reported.violations == dropped.violations


def test_report_leaves_out_what_cannot_be_encoded():
    when = Column(name="when", kind="datetime", datetime_format="iso")
    rows = columns(
        age=["1", "old", "200", "1.5", "5", "6"],
        when=["2024-01-01"] * 4 + ["soon", "2024-01-01"],
        y=["0", "1", "0", "1", "0", "2"],
    )
    contract = schema(AGE, when, Column(name="y", kind="ignored"))
    found = validate_rows(rows, contract, LINES, "t.csv", "report")
    assert found.keep.tolist() == [True, False, True, True, False, False]
    assert [(v.row, v.column, v.readable) for v in found.violations] == [
        (1, "age", False),
        (2, "age", True),
        (3, "age", True),
        (4, "when", False),
        (5, "y", False),
    ]
    assert found.notes == (
        "t.csv: kept 2 and dropped 3 of 6 rows that violate the schema; those dropped cannot be encoded",
        "column 'age': expected a whole number >= 0 and <= 120; 3 cells differ, the first on line 3",
        "column 'when': expected a date (ISO 8601); 1 cells differ, the first on line 6",
        "column 'y': expected one of '0', '1'; 1 cells differ, the first on line 7",
    )


def test_bounds_of_a_column_that_no_model_reads_are_no_reason_to_drop():
    plain = Column(name="c", kind="categorical", vocabulary=("a",), minimum=0)
    found = validate_rows(columns(c=["a", "-1", "1", "1", "1", "1"]), schema(plain), LINES, "t.csv", "report")
    assert (found.keep.all(), len(found.violations)) == (True, 2)


def test_what_no_encoding_survives_is_found_before_other_rules():
    late = Column(name="when", kind="datetime", datetime_format="iso", minimum=0)
    rows = columns(when=["2024-01-01"] * 5 + ["soon"], y=["0", "1", "x", "0", "1", "0"])
    found = validate_rows(rows, schema(late, Column(name="y", kind="ignored", minimum=0)), LINES, "t.csv", "report")
    assert {(v.column, v.rule, v.readable) for v in found.violations if not v.readable} == {
        ("when", "a date (ISO 8601)", False),
        ("y", "one of '0', '1'", False),
    }


def test_a_class_lost_by_dropping_is_told_and_a_single_one_refused():
    rows = columns(age=["1", "-3", "-1", "4", "5", "6"], y=["0", "2", "2", "1", "1", "1"])
    three = schema(AGE, Column(name="y", kind="ignored"), classes=("0", "1", "2", "3"))
    assert validate_rows(rows, three, LINES, "t.csv", "report").notes[0].startswith("t.csv: kept 2 of 6 rows")
    found = validate_rows(rows, three, LINES, "t.csv", "drop")
    assert found.notes[-1] == "t.csv: no row is left of the classes '2'"
    rows["y"][0] = "2"
    rows["age"][0] = "-1"
    with pytest.raises(DataError) as caught:
        validate_rows(rows, three, LINES, "t.csv", "drop")
    assert caught.value.problems[-1] == (
        "t.csv: dropped 3 of 6 rows that violate the schema; a single class is left: '1'"
    )


def test_rules_broken_by_rows_to_answer_are_counted_across_chunks():
    plan = Column(name="plan", kind="categorical", vocabulary=("a", "b"), fixed_vocabulary=True, required=True)
    learnt = Column(name="learnt", kind="categorical", vocabulary=("a",))
    target = Column(name="y", kind="ignored", minimum=0)
    contract = schema(AGE, plan, learnt, target, task="regression", classes=())
    rows = columns(
        age=["1", "old", "200", "-1", "5", ""], plan=["a", "c", "", "b", "b", "d"], learnt=["z"] * 6, y=["-1"] * 6
    )
    found = broken_rules(rows, contract, LINES)
    bounds, one_of = "a whole number >= 0 and <= 120", "one of 'a', 'b'"
    assert found == {
        ("plan", one_of): Broken(2, 3),
        ("age", bounds): Broken(2, 4),
        ("plan", "a value (required)"): Broken(1, 4),
        ("age", "a value (required)"): Broken(1, 7),
    }
    assert broken_rules(rows, contract, LINES, label=True)["y", "a number >= 0"] == Broken(6, 2)
    again = add_broken(found, {("age", bounds): Broken(5, 90), ("x", "r"): Broken(1, 91)})
    assert (again["age", bounds], again["x", "r"]) == (Broken(7, 4), Broken(1, 91))
    assert broken_notes(again, "t.csv", "answered all the same")[1] == (
        "t.csv: column 'age': expected a whole number >= 0 and <= 120; 7 cells differ, the first on line 4; "
        "answered all the same"
    )


def test_a_long_cell_is_shown_by_its_beginning():
    found = problems_of(columns(age=["1", "x" * 10_000, "3", "4", "5", "6"]), schema(AGE))
    assert found[0].endswith(f"got '{'x' * 80} ...'")


def test_dropping_every_row_is_refused():
    with pytest.raises(DataError, match="every row violates the schema; none is left"):
        validate_rows(columns(age=["-1"] * 6), schema(AGE), LINES, "t.csv", "drop")


def test_a_schema_file_from_end_to_end(tmp_path):
    path = tmp_path / "schema.json"
    rules = {"age": {"type": "number", "minimum": 0}, "color": {"enum": ["red", "blue"]}, "y": {"enum": ["no", "yes"]}}
    path.write_text(json.dumps({"properties": rules, "required": ["color"]}))
    rows = columns(
        age=["1", "2", "x", "4", "5", "6"],
        color=["red", "green", "blue", "red", "red", ""],
        y=["yes", "no", "yes", "no", "maybe", "no"],
    )
    contract = infer_schema(rows, target_column="y", declared=read_schema_file(path), lines=LINES)
    assert contract.target.classes == ("no", "yes")
    assert problems_of(rows, contract) == [
        "t.csv:3: column 'color': expected one of 'red', 'blue', got 'green'",
        "t.csv:4: column 'age': expected a number >= 0, got 'x'",
        "t.csv:6: column 'y': expected one of 'no', 'yes', got 'maybe'",
        "t.csv:7: column 'color': expected a value (required), got a missing cell",
    ]
