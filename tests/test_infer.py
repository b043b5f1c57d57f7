import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Inference
from mmjax.data.encode import encode
from mmjax.data.infer import fit_vocabulary, infer_schema
from mmjax.data.kinds import SCHEMA_TOO, decide
from mmjax.data.schema_file import DeclaredColumn, DeclaredSchema
from mmjax.data.survey import ColumnSurvey, Keep, Strip, see
from mmjax.data.table import read_table
from mmjax.data.target import infer_target
from mmjax.errors import DataError
from mmjax.schema import schema_from_json, schema_to_json

MARKERS = ("NA", "?")


def text_column(cells) -> np.ndarray:
    return np.array(list(cells), dtype=object)


def verdict(cells, name="c", inference=Inference(), declared=None):
    return decide(see(name, text_column(cells), MARKERS).facts, declared, inference)


def often(*cells: str) -> list[str]:
    return list(cells) * 30


KINDS = [
    (often("1", "2.5", "-.5", "2e+05", "+3", " 4 "), "numeric", "numbers, 6 distinct values"),
    (often("1", "2", "NA", " ", "?", ""), "numeric", "whole numbers, 2 distinct values (1, 2), 120 missing"),
    (often("0", "1"), "numeric", "whole numbers, 2 distinct values (0, 1)"),
    (often("0", "0.5", "-0.25"), "numeric", "numbers, 3 distinct values (-0.25, 0, 0.5)"),
    (often("001", "2", "3"), "categorical", "text, 3 distinct values; numbers with leading zeros are codes"),
    (often("1_000", "2", "x"), "categorical", "text, 3 distinct values"),
    (often("0x10", "0x11"), "categorical", "text, 2 distinct values"),
    (often("1", "٣"), "categorical", "text, 2 distinct values"),
    (
        often("1", "2", "3", "4", "1e400"),
        "categorical",
        "text, 5 distinct values; all but 1 of its values are numbers: '1e400'; "
        f"mend them or add them to missing_markers{SCHEMA_TOO}",
    ),
    (often("1", "2", "3", "inf", "nan"), "categorical", "text, 5 distinct values"),
    (often("Yes", "no", "YES", "No "), "boolean", "no or yes"),
    (often("T", "f", "NA"), "boolean", "f or t, 30 missing"),
    (often("true", "FALSE"), "boolean", "false or true"),
    (often("true", "no"), "categorical", "text, 2 distinct values"),
    (often("male", "female"), "categorical", "text, 2 distinct values"),
    (often("2024-01-31", "2023-12-01"), "datetime", "dates, ISO 8601"),
    (often("2024-01-31T10:00:00Z", "2023-12-01 23:59:59.123+02:00", "NA"), "datetime", "dates, ISO 8601, 30 missing"),
    (often("2024-01-31T10:00:00Z", "2023-12-01T00:00"), "categorical", "text, 2 distinct values; dates, some with and "
     "some without a time zone"),
    (often("2024-02-30", "2024-01-01"), "categorical", "text, 2 distinct values"),
    (often("31.01.2024", "1.2.2024"), "datetime", "dates, %d.%m.%Y"),
    (often("2024/01/31", "2024/02/01"), "datetime", "dates, %Y/%m/%d"),
    (often("01/31/2024", "02/01/2024"), "datetime", "dates, %m/%d/%Y"),
    (often("31/01/2024 10:30", "01/02/2024 00:00"), "datetime", "dates, %d/%m/%Y %H:%M"),
    (often("01/02/2024", "03/04/2024"), "categorical",
     "text, 2 distinct values; dates whose day and month no cell tells apart"),
    (often("a"), "constant", "always 'a'"),
    (often("", "NA"), "constant", "every cell is missing"),
    (often("a", ""), "constant", "always 'a' or missing (30 of 60); if that tells something, declare it categorical in "
     "the schema file"),
    ([f"u{i}x" for i in range(40)], "identifier", "text, 40 distinct values in 40 cells"),
    ([f"u{i}x" for i in range(40)] + ["u0x"] * 10, "text",
     "text, 40 distinct values in 50 rows: fewer than 2 rows a value"),
    ([f"u{i}x" for i in range(10)], "categorical", "text, 10 distinct values"),
    ([f"row {i} says a few more words" for i in range(40)], "text",
     "free text: 7.0 words on average, more than 5"),
    ([str(i) for i in range(100, 140)], "identifier",
     "whole numbers, 40 distinct values in 40 rows, rising from row to row"),
    ([str(i) for i in np.random.default_rng(0).permutation(40)], "identifier",
     "whole numbers, 40 distinct values in 40 rows, without gaps"),
    ([str(i * i % 9973) for i in range(300, 340)], "numeric", "whole numbers, 40 distinct values"),
    ([str(i) for i in range(10)], "numeric", "whole numbers, 10 distinct values"),
    ([str(i / 2) for i in range(40)], "numeric", "numbers, 40 distinct values"),
]  # fmt: skip


def test_of_a_long_cell_only_the_beginning_is_told():
    shown = f"'{'x' * 100}' ... (2,000,000 characters)"
    assert verdict(often("x" * 2_000_000)).reason == f"always {shown}"
    nearly = [*map(str, range(30)), "x" * 2_000_000]
    assert verdict(nearly).reason.endswith(
        f"are numbers: {shown}; mend them or add them to missing_markers{SCHEMA_TOO}"
    )


@pytest.mark.parametrize(("cells", "kind", "reason"), KINDS, ids=[f"{k}-{i}" for i, (_, k, _) in enumerate(KINDS)])
def test_kinds_and_their_reasons(cells, kind, reason):
    assert verdict(cells)[:2] == (kind, reason)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("PassengerId", "identifier"), ("user_id", "identifier"), ("ID", "identifier"), ("Unnamed: 0", "identifier"),
     ("paid", "numeric"), ("humid", "numeric"), ("Width", "numeric")],
)  # fmt: skip
def test_whole_numbers_named_like_an_identifier(name, kind):
    shuffled = np.random.default_rng(0).choice(10_000, 400, replace=False)
    assert verdict([str(i) for i in shuffled], name=name).kind == kind


def looks(written: str, plain: str) -> str:
    return (
        f"looks like numbers written {written}: write them with a point and no separators or signs ({plain}) to learn "
        "from them as numbers"
    )


WRITTEN = [
    ([f"0,{i}" for i in range(100, 140)], "text", looks("'0,100'", "0.100")),
    ([f"{i},345" for i in range(100, 140)], "text", looks("'100,345'", "100345 or 100.345")),
    ([f"{abs(i)},{i + 500}" for i in range(30, -10, -1)], "text", looks("'0,500'", "0.500")),
    ([f"{i},345,000" for i in range(1, 41)], "text", looks("'1,345,000'", "1345000")),
    ([f"${i}.50" for i in range(40)], "text", looks("'$0.50'", "0.50")),
    ([f"-{i}\u00a0345,5 \u20ac" for i in range(1, 41)], "text", looks(r"'-1\xa0345,5 €'", "-1345.5")),
    ([f"{i}%" for i in range(10)] * 4, "categorical", looks("'0%'", "0")),
    ([str(i) for i in range(30)] + [f"1,{i}" for i in range(200, 210)], "text", looks("'1,200'", "1200 or 1.200")),
    (["n.a."] + [f"{i}%" for i in range(40)], "text", looks("'0%' (but for 1: 'n.a.')", "0")),
]


@pytest.mark.parametrize(("cells", "kind", "reason"), WRITTEN)
def test_numbers_written_for_people_are_told_and_identify_no_rows(cells, kind, reason):
    found = verdict(cells)
    assert (found.kind, found.reason.split("; ")[1]) == (kind, reason + SCHEMA_TOO)


@pytest.mark.parametrize("form", ["{}.1.24x", "{}-12", "00{},5", "{}:30", "{} kg", "192.168.0.{}", "{}1 12", "v{},5"])
def test_codes_units_and_addresses_are_no_numbers_written_for_people(form):
    found = verdict([form.format(i) for i in range(100, 140)])
    assert found.kind in ("identifier", "text")
    assert "looks like" not in found.reason


def test_facts_of_numbers_written_for_people_are_the_same_where_texts_are_not_kept():
    cells = [f"{i % 70} 000,5" for i in range(100)] + ["1,234", *("7%", "1", "2", "NA", "some words", "")]
    survey = ColumnSurvey("c", MARKERS, 0, Keep(), lambda _name, dtype: Strip(dtype))
    for start in range(0, len(cells), 9):
        survey.add(cells[start : start + 9])
    facts = survey.seen().facts
    assert facts == see("c", text_column(cells), MARKERS).facts
    assert (facts.distinct, facts.numbers, facts.written, facts.words) == (75, 2, 71, 77)  # '0 000,5' is none


def test_nearly_numbers_identify_rows_only_where_the_name_says_so():
    nearly, written = [*map(str, range(39)), "n.a."], [f"{i}%" for i in range(40)]
    for cells in (nearly, written):
        assert [verdict(cells, name=name).kind for name in ("size", "row_id")] == ["text", "identifier"]


def test_thresholds():
    texts = [f"v{i}" for i in range(30)] * 3
    assert verdict(texts).kind == "categorical"
    assert verdict(texts, inference=Inference(max_categories=29)).reason == "text, 30 distinct values, more than 29"
    assert verdict(often("a b", "c d"), inference=Inference(text_mean_words=1.5)).kind == "text"
    assert verdict([f"u{i}" for i in range(40)], inference=Inference(identifier_unique_ratio=1.0)).kind == "identifier"
    nearly = [str(i) for i in range(39)] + ["0"]
    assert verdict(nearly, name="row_id").kind == "identifier"
    assert verdict(nearly, name="row_id", inference=Inference(identifier_unique_ratio=0.99)).kind == "numeric"


@pytest.mark.parametrize(
    ("declared", "cells", "kind"),
    [
        (DeclaredColumn("c", kind="categorical"), often("1", "2"), "categorical"),
        (DeclaredColumn("c", type="string"), often("1", "2"), "categorical"),
        (DeclaredColumn("c", type="string"), [f"u{i}" for i in range(40)], "identifier"),
        (DeclaredColumn("c", type="integer"), often("1", "x"), "numeric"),
        (DeclaredColumn("c", type="number", enum=("1", "2")), often("1", "2"), "categorical"),
        (DeclaredColumn("c", type="boolean"), often("yes", "no", "maybe"), "boolean"),
        (DeclaredColumn("c", type="boolean", enum=("0", "1")), often("0", "1"), "boolean"),
        (DeclaredColumn("c", format="date"), often("2024-01-01", "x"), "datetime"),
        (DeclaredColumn("c", minimum=0), often("1", "2"), "numeric"),
        (DeclaredColumn("c", kind="ignored"), often("1", "2"), "ignored"),
    ],
)
def test_a_schema_file_decides_over_the_cells(declared, cells, kind):
    assert verdict(cells, declared=declared).kind == kind


def test_a_declared_kind_says_what_it_overrides():
    found = verdict(often("1", "2"), declared=DeclaredColumn("c", kind="categorical"))
    assert found.reason == "the schema file says so (it looks numeric: whole numbers, 2 distinct values (1, 2))"
    found = verdict(often("1.2.2024", "01/2"), declared=DeclaredColumn("c", kind="datetime"))
    assert found.datetime_format == "iso"
    found = verdict(often("a", "NA"), declared=DeclaredColumn("c", type="string"))
    assert found.kind == "constant"


TARGETS = [
    (often("yes", "no"), "classification", ("no", "yes"), "text, 2 distinct values"),
    (often("10", "9", "-1"), "classification", ("-1", "9", "10"),
     "whole numbers, 3 distinct values, at most 20; set task: regression to predict a number"),
    (often("010", "9"), "classification", ("9", "010"), "numbers with leading zeros are codes, 2 distinct values"),
    (often(*map(str, range(21))), "regression", (),
     "whole numbers, 21 distinct values, more than 20; set task: classification to predict classes"),
    (often("0.5", "1"), "regression", (),
     "numbers, not all whole, 2 distinct values; set task: classification to predict classes"),
    (often("a", "10", "9"), "classification", ("10", "9", "a"), "text, 3 distinct values"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "task", "classes", "reason"), TARGETS)
def test_target_task_classes_and_reason(cells, task, classes, reason):
    found = infer_target(text_column(cells), "y")
    assert (found.task, found.classes, found.reason) == (task, classes, reason)


def test_a_target_of_numbers_written_for_people_is_no_class():
    cells = text_column([f"{i},345,000" for i in range(1, 41)])
    said = looks("'1,345,000'", "1345000")
    message = f"^target column 'y': {re.escape(said)}, or set task: classification$"
    with pytest.raises(DataError, match=message):
        infer_target(cells, "y")
    assert len(infer_target(np.append(cells, cells[:1]), "y", task="classification").classes) == 40
    assert infer_target(text_column(often("10%", "20%")), "y").classes == ("10%", "20%")


def test_a_target_whose_values_never_repeat_is_no_class():
    """Names, for instance: nothing can be learnt of a class of one row. A few rows may be so."""
    names = text_column([f"person {i}" for i in range(30)])
    with pytest.raises(DataError, match=r"^target column 'y': expected values that repeat, got 30 classes of one row"):
        infer_target(names, "y")
    with pytest.raises(DataError, match=r"; set task: regression, or name another column$"):
        infer_target(text_column([str(i) for i in range(12)]), "y")
    assert len(infer_target(names[:10], "y").classes) == 10
    assert len(infer_target(np.append(names, names[:1]), "y").classes) == 30


def test_task_by_config_then_schema_file():
    numbers = text_column(often("0", "1", "2"))
    assert infer_target(numbers, "y", task="regression").reason == "task is set in the config"
    declared = DeclaredColumn("y", type="number")
    assert infer_target(numbers, "y", declared=declared).task == "regression"
    assert infer_target(numbers, "y", declared=declared, task="classification").classes == ("0", "1", "2")
    ordered = DeclaredColumn("y", enum=("2", "0", "1"))
    assert infer_target(numbers, "y", declared=ordered).classes == ("2", "0", "1")
    assert infer_target(numbers, "y", inference=Inference(max_integer_classes=2)).task == "regression"


def problems_of_target(cells, **options) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        infer_target(text_column(cells), "y", **options)
    return caught.value.problems


def test_target_faults():
    lines = np.arange(2, 62)
    assert problems_of_target(["a", "", "NA"] * 20, lines=lines) == (
        "target column 'y': expected a value in every row, got 40 missing (line 3, 4, 6, 7, 9 and 35 more); "
        "remove these rows, or set on_invalid to drop",
    )
    assert problems_of_target(["a"]) == ("target column 'y': expected at least two classes, got 'a'",)
    assert problems_of_target(["1", "x", "y"], task="regression", positive_class="1") == (
        "target column 'y': expected numbers, got 'x', 'y' (row 2, 3)",
        "positive_class: expected only with classification, got a regression target",
    )
    assert problems_of_target(["1.5", "1.5"]) == ("target column 'y': expected different numbers, got always '1.5'",)
    assert problems_of_target(["yes", "no"], positive_class="Yes") == (
        "positive_class: expected one of no, yes, got 'Yes'; did you mean 'yes'?",
    )
    assert problems_of_target(["a", "b", "c"], positive_class="a") == (
        "positive_class: expected only with two classes, got 3",
    )
    assert problems_of_target([*map(str, range(50)), "12a"]) == (
        "target column 'y': all but 1 of 51 distinct values are numbers: '12a'; mend these or set task",
    )
    assert problems_of_target(["a", "x"], declared=DeclaredColumn("y", enum=("a", "b"))) == (
        "target column 'y': expected at least two classes, got 'a'",
    )


def small_table() -> dict[str, np.ndarray]:
    return {
        "name": text_column(f"n{i}" for i in range(60)),
        "age": text_column(str(20 + i % 9) for i in range(60)),
        "city": text_column(("Rome", "Oslo", "Bern")[i % 3] for i in range(60)),
        "w": text_column(str(i % 4) for i in range(60)),
        "part": text_column(("train", "test")[i % 2] for i in range(60)),
        "y": text_column(("a", "b")[i % 2] for i in range(60)),
    }


def test_every_column_is_in_the_schema_with_its_place():
    schema = infer_schema(
        small_table(), target_column="y", id_column="name", weight_column="w", ignore_columns=("city",),
        exclude=("part",), positive_class="a", missing_markers=MARKERS,
    )  # fmt: skip
    assert [(c.name, c.kind, c.reason) for c in schema.columns] == [
        ("name", "identifier", "the id column"),
        ("age", "numeric", "whole numbers, 9 distinct values"),
        ("city", "ignored", "in ignore_columns"),
        ("w", "ignored", "the sample weights"),
        ("part", "ignored", "has another use in the config"),
        ("y", "ignored", "the target"),
    ]
    assert schema.missing_markers == MARKERS
    assert (schema.id_column, schema.weight_column, schema.positive_index) == ("name", "w", 0)
    assert schema_from_json(schema_to_json(schema), "here") == schema


def problems_of(columns=None, target_column="y", **options) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        infer_schema(columns or small_table(), target_column=target_column, **options)
    return caught.value.problems


def test_names_that_are_not_there_come_all_at_once():
    declared = DeclaredSchema("s.json", {"agee": DeclaredColumn("agee")})
    listed = "the columns are name, age, city, w, part, y"
    assert problems_of(
        target_column="Y", id_column="nme", weight_column="v", ignore_columns=("citty",), exclude=("prt",),
        declared=declared,
    ) == (
        f"target_column: no column 'Y'; {listed}",
        f"id_column: no column 'nme'; {listed}; did you mean 'name'?",
        f"weight_column: no column 'v'; {listed}",
        f"ignore_columns: no column 'citty'; {listed}; did you mean 'city'?",
        f"split.column: no column 'prt'; {listed}; did you mean 'part'?",
        "s.json: no column 'agee' in the table; did you mean 'age'?",
    )  # fmt: skip


def test_one_column_has_one_use():
    assert problems_of(id_column="y") == ("column 'y': expected one use, got target_column and id_column",)
    assert problems_of(ignore_columns=("y",)) == ("column 'y': expected one use, got target_column and ignore_columns",)
    assert infer_schema(small_table(), target_column="y", id_column="name", ignore_columns=("name",)).id_column


def test_weights_target_and_features_are_reported_together():
    columns = small_table()
    columns["w"][[3, 5, 7]] = ["-1", "x", ""]
    columns["y"][0] = ""
    assert problems_of(columns, weight_column="w", ignore_columns=("age", "city", "part"), lines=np.arange(2, 62)) == (
        "expected at least one column to learn from, got none: 'name' is identifier (text, 60 distinct values in 60 "
        "cells); 'age' is ignored (in ignore_columns); 'city' is ignored (in ignore_columns); 'w' is ignored (the "
        "sample weights); 'part' is ignored (in ignore_columns); 'y' is ignored (the target)",
        "weight_column 'w': expected numbers of 0 or more, got '-1', 'x', '' (line 5, 7, 9)",
        (
            "target column 'y': expected a value in every row, got 1 missing (line 2); remove these "
            "rows, or set on_invalid to drop"
        ),
    )
    columns["y"][0] = "a"
    columns["w"][:] = "0"
    assert problems_of(columns, weight_column="w") == ("weight_column 'w': expected a weight above 0, got only zeros",)


def fitted(cells, **options):
    columns = {"c": text_column(cells), "y": text_column(["a", "b"] * (len(cells) // 2))}
    return fit_vocabulary(infer_schema(columns, target_column="y", **options), columns).column("c")


def test_vocabularies():
    assert fitted(often("b", "a", "NA", "B", " a")).vocabulary == (" a", "B", "a", "b")
    declared = DeclaredSchema("s", {"c": DeclaredColumn("c", kind="categorical")})
    assert fitted(often("10", "9", "1.5", "NA"), declared=declared).vocabulary == ("1.5", "9", "10")
    assert fitted(often("Yes", "no", "YES", "No ")).vocabulary == ("No", "YES")
    declared = DeclaredSchema("s", {"c": DeclaredColumn("c", enum=("z", "a"))})
    found = fitted(often("a", "b"), declared=declared)
    assert (found.vocabulary, found.fixed_vocabulary) == (("z", "a"), True)


def test_vocabulary_and_offset_come_from_the_given_rows_alone():
    columns = {"c": text_column(["a", "b", "c", "a"] * 10), "y": text_column(["0", "1"] * 20)}
    schema = infer_schema(columns, target_column="y")
    assert schema.column("c").vocabulary == ()
    part = {name: cells[[0, 1]] for name, cells in columns.items()}
    assert fit_vocabulary(schema, part).column("c").vocabulary == ("a", "b")


@pytest.mark.parametrize(
    ("cells", "offset"),
    [
        (often("1", "2", "300"), 0.0),
        (often("2007", "2008", "2009"), 0.0),
        (often("1700000001", "1700000003", "1700000009"), 1700000003.0),
        (often("-1000.01", "-1000.03", "-1000.02"), -1000.02),
        (often("16777219", "0", "-16777219"), 0.0),
        (often("", "NA", "5", "6"), 0.0),
        (often("2024-01-01", "2024-01-03", "2024-01-09"), 19725.0),
    ],
)
def test_offsets(cells, offset):
    assert fitted(cells).offset == offset


@settings(max_examples=30, deadline=None)
@given(start=st.integers(10**9, 10**15), steps=st.lists(st.integers(1, 1000), min_size=20, max_size=40))
def test_large_whole_numbers_stay_apart_in_f32(start, steps):
    values = start + np.cumsum(steps)
    order = np.random.default_rng(0).permutation(len(values))
    columns = {"c": text_column(map(str, np.tile(values[order], 2))), "y": text_column(["a", "b"] * len(values))}
    schema = fit_vocabulary(infer_schema(columns, target_column="y"), columns)
    encoded = encode(schema, columns)["numeric"][: len(values), 0].astype(np.float64)
    differences = encoded[np.argsort(order)] - encoded[np.argsort(order)][0]
    assert np.array_equal(differences, (values - values[0]).astype(np.float64))


REAL = {
    "adult.csv.gz": ("income", {"numeric": 6, "categorical": 8, "ignored": 1}, ("<=50K", ">50K")),
    "titanic.csv": ("Survived", {"identifier": 2, "numeric": 5, "categorical": 3, "text": 1, "ignored": 1}, ("0", "1")),
    "penguins.csv": ("species", {"numeric": 5, "categorical": 2, "ignored": 1}, ("Adelie", "Chinstrap", "Gentoo")),
    "diamonds.csv": ("price", {"numeric": 6, "categorical": 3, "ignored": 1}, ()),
    "california_housing.csv": ("median_house_value", {"numeric": 8, "categorical": 1, "ignored": 1}, ()),
    "wine_quality.csv": ("quality", {"numeric": 11, "categorical": 1, "ignored": 1}, tuple("3456789")),
    "telco_churn.csv": (
        "Churn",
        {"identifier": 1, "categorical": 11, "numeric": 4, "boolean": 4, "ignored": 1},
        ("No", "Yes"),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables(shared_data, name):
    target, kinds, classes = REAL[name]
    found = read_table(shared_data / "tabular" / name)
    schema = infer_schema(found.columns, target_column=target, lines=found.lines)
    counts = [column.kind for column in schema.columns]
    assert {kind: counts.count(kind) for kind in counts} == kinds
    assert schema.target.classes == classes
    schema = fit_vocabulary(schema, found.columns)
    batch = encode(schema, found.columns, label=True)
    assert batch["category"].min(axis=0).tolist() == [
        int(not any(cell.strip() in ("", "?", "NA") for cell in found.columns[c.name])) for c in schema.category_columns
    ]
    assert len(batch["label"]) == len(found.lines)


def test_real_columns_that_other_tools_misread(shared_data):
    telco = read_table(shared_data / "tabular" / "telco_churn.csv").columns
    schema = fit_vocabulary(infer_schema(telco, target_column="Churn"), telco)
    at = schema.numeric_features.index("TotalCharges")
    assert np.isnan(encode(schema, telco)["numeric"][:, at]).sum() == 11
    assert schema.column("SeniorCitizen").reason == "whole numbers, 2 distinct values (0, 1)"
    assert schema.column("customerID").kind == "identifier"
    titanic = read_table(shared_data / "tabular" / "titanic.csv").columns
    kinds = {c.name: c.kind for c in infer_schema(titanic, target_column="Survived").columns}
    assert {name: kinds[name] for name in ("PassengerId", "Name", "Ticket", "Cabin")} == {
        "PassengerId": "identifier",
        "Name": "identifier",
        "Ticket": "text",
        "Cabin": "categorical",
    }
