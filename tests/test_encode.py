import subprocess
import sys
from datetime import UTC, date, datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.cells import parse_numbers, plain_numbers
from mmjax.data.encode import (
    check_columns,
    columns_from_rows,
    encode,
    encode_label,
    missing_columns,
)
from mmjax.data.infer import fit_vocabulary, infer_schema
from mmjax.data.unknown import Unknown, unknown_cells, unknown_warnings
from mmjax.errors import DataError
from mmjax.schema import Column, ImageSpec, Kind, Schema, Target

COLUMNS = (
    Column(name="id", kind="identifier"),
    Column(name="age", kind="numeric"),
    Column(name="when", kind="datetime", datetime_format="iso", offset=19723.0),
    Column(name="city", kind="categorical", vocabulary=("Rome", "Oslo")),
    Column(name="paid", kind="boolean", vocabulary=("no", "Yes")),
    Column(name="w", kind="ignored"),
    Column(name="y", kind="ignored"),
)
SCHEMA = Schema(
    target=Target(column="y", task="classification", classes=("b", "a")),
    columns=COLUMNS,
    missing_markers=("NA", "?"),
    id_column="id",
    weight_column="w",
)


def cells(*values) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def rows(**changes) -> dict[str, np.ndarray]:
    plain = {
        "id": cells("1", "2"),
        "age": cells("41", "NA"),
        "when": cells("2024-01-01T06:00:00", ""),
        "city": cells("Oslo", "Bern"),
        "paid": cells("yes", "?"),
        "w": cells("1.5", "0"),
        "y": cells("a", "b"),
    }
    return plain | changes


def problems_of(columns, *, label=False, schema=SCHEMA) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        encode(schema, columns, label=label)
    return caught.value.problems


def test_a_batch_field_by_field():
    batch = encode(SCHEMA, rows(), label=True)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "numeric": ((2, 5), "float32"),
        "category": ((2, 2), "int32"),
        "label": ((2,), "int32"),
        "weight": ((2,), "float32"),
    }
    # 2024-01-01 is a Monday and 19723 days after 1970-01-01
    np.testing.assert_array_equal(batch["numeric"][0], np.array([41, 0.25, 0.25, 0, 0], np.float32))
    assert np.isnan(batch["numeric"][1]).all()
    assert batch["category"].tolist() == [[2, 2], [0, 0]]
    assert batch["label"].tolist() == [1, 0]
    assert batch["weight"].tolist() == [1.5, 0]
    assert set(encode(SCHEMA, rows())) == {"numeric", "category"}


def test_absent_modalities_are_absent_keys():
    target = Target(column="y", task="classification", classes=("a", "b"))
    only_numbers = Schema(target=target, columns=(Column(name="x", kind="numeric"),))
    assert set(encode(only_numbers, {"x": cells("1")})) == {"numeric"}
    only_texts = Schema(target=target, columns=(Column(name="x", kind="categorical", vocabulary=("1",)),))
    assert set(encode(only_texts, {"x": cells("1")})) == {"category"}


def test_regression_labels_and_no_weights():
    schema = Schema(target=Target(column="y", task="regression"), columns=(Column(name="age", kind="numeric"),))
    batch = encode(schema, rows(age=cells(1, 2), y=cells("1.5", "-2e3")), label=True)
    assert batch["label"].tolist() == [[1.5], [-2000.0]]
    assert (batch["label"].dtype, "weight" in batch) == (np.float32, False)
    schema = Schema(target=schema.target, columns=())
    assert encode_label(schema, rows(y=cells(1, 2.5))).tolist() == [[1.0], [2.5]]
    assert problems_of(rows(y=cells("x", "")), label=True, schema=schema) == (
        "column 'y', row 1: expected a number (the target), got 'x'",
        "column 'y', row 2: expected a number (the target), got ''",
    )


def test_numbers_from_json_and_data_frames():
    given = (1, 2.5, "3e1", " 4 ", None, float("nan"), "", "?", np.float32(0.5), np.int64(7), "1e-400")
    expected = [1, 2.5, 30, 4, np.nan, np.nan, np.nan, np.nan, 0.5, 7, 0]
    schema = Schema(target=SCHEMA.target, columns=(COLUMNS[1],), missing_markers=("?",))
    np.testing.assert_array_equal(
        encode(schema, {"age": cells(*given)})["numeric"][:, 0], np.array(expected, np.float32)
    )
    for array in (np.array([1, 2]), np.array([1.5, np.nan]), np.array([1, 2], np.float32), np.array(["1", "?"])):
        assert encode(schema, {"age": array})["numeric"].shape == (2, 1)


@pytest.mark.parametrize(
    ("cell", "got"),
    [
        ("abc", "'abc'"), ("1_000", "'1_000'"), ("٣", "'٣'"), ("1e39", "'1e39'"), ("inf", "'inf'"), ("nan", "'nan'"),
        (True, "True"), (np.True_, "True"), (1e39, "1e+39"), (float("inf"), "inf"), ([1], "[1]"),
        (10**400, "1" + "0" * 76 + "..."), (16**5000, "0x1" + "0" * 74 + "..."),
    ],
    ids=lambda value: str(value)[:8] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_number_is_named_with_its_row(cell, got):
    assert problems_of(rows(age=cells("1", cell))) == (
        f"column 'age', row 2: expected a number within ±3.4e38, got {got}",
    )


def test_arrays_that_hold_no_numbers():
    for array in (np.array([np.inf, 1.0]), np.array([1e39, 1.0]), np.array([True, True])):
        assert "column 'age', row 1: expected a number" in problems_of(rows(age=array))[0]
    assert "expected a number" in problems_of(rows(age=np.array(["2024-01-01"] * 2, dtype="datetime64[ns]")))[0]


def test_all_bad_cells_come_at_once_and_twenty_are_shown():
    found = problems_of(rows(age=cells("x", "1"), when=cells("soon", 3), w=cells("-1", "")), label=True)
    assert found == (
        "column 'age', row 1: expected a number within ±3.4e38, got 'x'",
        "column 'when', row 1: expected a date (ISO 8601), got 'soon'",
        "column 'when', row 2: expected a date (ISO 8601), got 3",
        "column 'w', row 1: expected a weight of 0 or more, got '-1'",
        "column 'w', row 2: expected a weight of 0 or more, got ''",
    )
    schema = Schema(target=SCHEMA.target, columns=(COLUMNS[1],))
    many = problems_of({"age": cells(*["x"] * 25)}, schema=schema)
    assert len(many) == 21
    assert many[-1] == "and 5 more bad cells"


def test_who_asks_says_what_a_cell_is_called():
    """Whatever its column is called, as no message is reworded."""
    odd = "x', row 9: y"
    schema = Schema(target=SCHEMA.target, columns=(Column(name=odd, kind="numeric"),))
    with pytest.raises(DataError) as caught:
        encode(schema, {odd: cells("1", "x")}, place=lambda column, row: f"number {row} of <{column}>")
    assert caught.value.problems == (f"number 2 of <{odd}>: expected a number within ±3.4e38, got 'x'",)


def test_labels_that_are_no_class():
    assert problems_of(rows(y=cells("A", None)), label=True) == (
        "column 'y', row 1: expected one of the classes b, a, got 'A'",
        "column 'y', row 2: expected one of the classes b, a, got a missing cell",
    )
    assert problems_of({k: v for k, v in rows().items() if k != "y"}, label=True) == (
        "expected the target column 'y', got id, age, when, city, paid, w",
    )
    assert problems_of({k: v for k, v in rows().items() if k != "w"}, label=True) == (
        "expected the weight column 'w', got id, age, when, city, paid, y",
    )
    with pytest.raises(DataError, match="row 1: expected one of the classes"):
        encode_label(SCHEMA, rows(y=cells("A", "a")))


def codes(vocabulary, *given, kind: Kind = "categorical") -> list[int]:
    column = Column(name="c", kind=kind, vocabulary=vocabulary)
    schema = Schema(target=SCHEMA.target, columns=(column,), missing_markers=("NA",))
    return encode(schema, {"c": cells(*given)})["category"][:, 0].tolist()


def test_category_cells_of_every_type():
    assert codes(("a", " a", "A"), "a", " a", "A", "a ", "", "NA", None) == [1, 2, 3, 0, 0, 0, 0]
    assert codes(("1", "1.5", "2.0"), 1, 1.0, "1", "1.0", 1.5, 2.0, 2, np.int64(1)) == [1, 1, 1, 0, 2, 3, 3, 1]
    assert codes((".0", "1.0"), None, float("nan"), 1, 0, "") == [0, 0, 2, 0, 0]
    assert codes(("FALSE", "TRUE", "MAYBE"), True, False, np.True_, "true", float("nan")) == [2, 1, 2, 0, 0]
    assert codes(("No", "YES"), "no", " Yes ", True, False, "NA", None, kind="boolean") == [1, 2, 2, 1, 0, 0]
    assert codes(("f", "t"), "F", "T", "true", kind="boolean") == [1, 2, 0]
    assert codes(("no", "yes"), "YES", "No", kind="boolean") == [2, 1]
    assert codes(("1",), 16**5000) == [0]
    schema = Schema(target=SCHEMA.target, columns=(COLUMNS[3],))
    assert problems_of({"city": cells("Rome", ["Rome"])}, schema=schema) == (
        "column 'city', row 2: expected a text, a number or a boolean, got ['Rome']",
    )


def unknown_in(**given) -> list[tuple]:
    columns = rows(**given)
    return [tuple(cell) for cell in unknown_cells(SCHEMA, columns, encode(SCHEMA, columns)["category"])]


def test_unknown_categories_are_told_from_missing_ones():
    found = unknown_in(city=cells("Bern", "Bern"), paid=cells("perhaps", None))
    assert found == [(0, "city", "Bern"), (0, "paid", "perhaps"), (1, "city", "Bern")]
    assert unknown_in(city=cells("Rome", " NA "), paid=cells(True, "NO")) == []
    told = unknown_warnings([Unknown(i, "city", "x" * 99) for i in range(7)], first=-10)
    shown = ", ".join(f"'{'x' * 60}' (row {i})" for i in range(11, 16))
    assert told == (f"column 'city': 7 cells of a category unknown to the model: {shown}, and 2 more",)


def date_parts(*given, form="iso") -> np.ndarray:
    column = Column(name="d", kind="datetime", datetime_format=form)
    schema = Schema(target=SCHEMA.target, columns=(column,))
    array = given[0] if isinstance(given[0], np.ndarray) else cells(*given)
    return encode(schema, {"d": array})["numeric"]


def test_dates_of_every_type_agree():
    expected = date_parts("2024-02-29T12:00:00")
    for same in (
        datetime(2024, 2, 29, 12),
        datetime(2024, 2, 29, 12, tzinfo=UTC),
        "2024-02-29 12:00",
        " 2024-02-29T12:00:00.000000Z ",
        "2024-02-29T14:00+02:00",
        np.array(["2024-02-29T12:00"], dtype="datetime64[ns]"),
    ):
        np.testing.assert_array_equal(date_parts(same), expected)
    np.testing.assert_array_equal(date_parts("29.02.2024 12:00", form="%d.%m.%Y %H:%M"), expected)
    np.testing.assert_array_equal(date_parts(date(2024, 2, 29)), date_parts("2024-02-29"))
    np.testing.assert_array_equal(date_parts("29.2.2024", form="%d.%m.%Y"), date_parts("2024-02-29"))
    assert np.isnan(date_parts(None, float("nan"), "")).all()
    assert np.isnan(date_parts(np.array(["NaT"], dtype="datetime64[s]"))).all()


@settings(max_examples=50, deadline=None)
@given(st.datetimes(datetime(1700, 1, 1), datetime(2300, 1, 1)))
def test_date_parts_equal_what_datetime_says(moment):
    elapsed, time, weekday, day = date_parts(moment.isoformat())[0]
    midnight = datetime(moment.year, moment.month, moment.day)
    length = (datetime(moment.year + 1, 1, 1) - datetime(moment.year, 1, 1)).days
    np.testing.assert_allclose(elapsed, (moment - datetime(1970, 1, 1)).total_seconds() / 86400, rtol=1e-6)
    np.testing.assert_allclose(time, (moment - midnight).total_seconds() / 86400, atol=1e-6)
    np.testing.assert_allclose(weekday * 7, moment.weekday(), atol=1e-5)
    np.testing.assert_allclose(day * length, moment.timetuple().tm_yday - 1, atol=1e-3)
    assert 0 <= min(time, weekday, day) <= max(time, weekday, day) < 1


def test_columns_that_are_known_missing_or_unknown():
    assert missing_columns(SCHEMA, ["city", "y"]) == ("age", "when", "paid")
    names = ("id", "age", "when", "city", "paid", "w", "y")
    assert check_columns(SCHEMA, names, where="t.csv") == ("id", "w", "y")
    assert check_columns(SCHEMA, ("when", "paid", "city", "age"), where="t.csv") == ()
    add_it = "got none of that name; add it, empty (in JSON null) where its value is not known"
    with pytest.raises(DataError) as caught:
        check_columns(SCHEMA, ("aged", "when", "city", "zzz"), where="t.csv")
    assert caught.value.problems == (
        f"t.csv: expected column 'age', {add_it}",
        f"t.csv: expected column 'paid', {add_it}",
        "t.csv: unknown column 'aged'; rename or remove it; did you mean 'age'?",
        "t.csv: unknown column 'zzz'; rename or remove it",
    )
    needed = [msgspec.structs.replace(column, required=True) for column in SCHEMA.columns]
    with pytest.raises(DataError, match=r"column 'when', got none of that name; add it$"):
        check_columns(msgspec.structs.replace(SCHEMA, columns=tuple(needed)), ("age", "city", "paid"), where="t.csv")
    assert problems_of({"age": cells("1"), "city": cells("a")}) == (
        "column 'when': expected a value for every row, got no such column",
        "column 'paid': expected a value for every row, got no such column",
    )
    assert "expected columns of equal length" in problems_of(rows(age=cells("1")))[0]


def test_rows_become_columns():
    found = columns_from_rows([{"a": 1, "b": "x"}, {"b": None, "a": 2.5}])
    assert {name: column.tolist() for name, column in found.items()} == {"a": [1, 2.5], "b": ["x", None]}
    assert all(column.dtype == object for column in found.values())
    picture = np.zeros((2, 3), np.uint8)
    assert columns_from_rows([{"image": picture}, {"image": picture}])["image"][1] is picture
    with pytest.raises(DataError) as caught:
        columns_from_rows([{"a": 1, "b": 2}, {"a": 1}, {"b": 2}])
    assert caught.value.problems == (
        "row 2: expected a value for 'b' as in other rows, got none",
        "row 3: expected a value for 'a' as in other rows, got none",
    )


row = st.fixed_dictionaries(
    {
        "n": st.one_of(st.none(), st.integers(-1000, 1000), st.floats(-1e6, 1e6), st.sampled_from(["1.5", "NA", ""])),
        "c": st.sampled_from(["x", "y", "", "NA", "z"]),
        "b": st.sampled_from(["yes", "No", ""]),
        "d": st.sampled_from(["2024-01-05", "2023-07-01", "NA"]),
        "y": st.sampled_from(["0", "1"]),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(row, min_size=4, max_size=12))
def test_each_row_is_encoded_alone_and_csv_equals_json(found):
    fit = columns_from_rows([
        {"n": str(i / 2), "c": "xy"[i % 2], "b": ("yes", "no")[i % 2], "d": f"2024-01-0{1 + i % 9}", "y": str(i % 2)}
        for i in range(30)
    ])  # fmt: skip
    schema = fit_vocabulary(infer_schema(fit, target_column="y"), fit)
    columns = columns_from_rows(found)
    whole = encode(schema, columns, label=True)
    for i in range(len(found)):
        single = encode(schema, columns_from_rows(found[i : i + 1]), label=True)
        for name in whole:
            np.testing.assert_array_equal(single[name][0], whole[name][i])
    as_text = {n: cells(*("" if v is None else str(v) for v in column)) for n, column in columns.items()}
    for name, array in encode(schema, as_text, label=True).items():
        np.testing.assert_array_equal(array, whole[name])


IMAGES = Schema(
    target=Target(column="label", task="classification", classes=("dark", "light")),
    image=ImageSpec(columns=("front", "back"), height_px=4, width_px=6),
)


def test_images_missing_images_and_bad_ones(tmp_path):
    decode = pytest.importorskip("mmjax.data.decode")
    light, dark = (np.full((4, 6, 3), value, np.uint8) for value in (200, 10))
    path = tmp_path / "dark.png"
    path.write_bytes(decode.encode_png(dark))
    columns = {"front": cells(light, str(path), dark), "back": cells(None, path.read_bytes(), " ")}
    columns["label"] = cells("light", "dark", "dark")
    batch = encode(IMAGES, columns, label=True)
    assert set(batch) == {"image", "image_present", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((3, 2, 4, 6, 3), np.uint8)
    assert batch["image"][:, :, 0, 0, 0].tolist() == [[200, 0], [10, 10], [10, 0]]
    assert batch["image_present"].tolist() == [[1, 0], [1, 1], [1, 0]]
    assert check_columns(IMAGES, ("front", "back", "label"), where="t.csv") == ("label",)
    columns["front"][1] = str(tmp_path / "none.png")
    columns["back"][1] = b"no image"
    found = problems_of(columns, schema=IMAGES)
    assert found[0].startswith(f"column 'front', row 2: {tmp_path}/none.png: ")
    assert found[1].startswith("column 'back', row 2: ")
    one = Schema(target=IMAGES.target, image=ImageSpec(height_px=4, width_px=6))
    assert encode(one, {"image": np.stack([light, dark])})["image"].shape == (2, 1, 4, 6, 3)


def test_encoding_imports_neither_pandas_nor_pillow():
    code = "import sys, mmjax.data.encode; sys.exit(any(m in sys.modules for m in ('pandas', 'PIL', 'jax', 'optax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NUMBERS = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([True, "1.5", "NA", -0.0, -999, -99.5]),
)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_numbers_read_together_are_those_read_column_by_column(columns: list[list]):
    arrays = [cells(*values) for values in columns]
    markers = ("NA", "-999", "-99.50")
    together = plain_numbers(arrays, markers)
    apart = [parse_numbers(array, markers) for array in arrays]
    plain = all(type(cell) in (int, float, type(None)) for values in columns for cell in values)
    if together is None:
        assert not plain or any(wrong.any() for _, wrong in apart)
    else:
        assert plain
        assert not any(wrong.any() for _, wrong in apart)
        expected = np.array([numbers for numbers, _ in apart])
        missing = np.isnan(expected)  # whatever the sign of its NaN
        np.testing.assert_array_equal(np.isnan(together), missing)
        bits = (values[~missing].view(np.uint64) for values in (together, expected))
        np.testing.assert_array_equal(*bits)


def test_columns_of_floats_are_read_together_unless_one_is_too_large():
    narrow = [np.array([1.5, np.nan], np.float32), np.array([2, 3], np.int64)]
    np.testing.assert_array_equal(plain_numbers(narrow, ()), [[1.5, np.nan], [2.0, 3.0]])
    assert plain_numbers([*narrow, np.array([1.0, 1e39])], ()) is None
    assert plain_numbers([], ()) is None
    assert plain_numbers([np.array(["2024-01-01"], "M8[ns]")], ()) is None


def test_a_number_that_equals_a_marker_is_missing_however_it_is_given():
    markers = ("NA", "-999", "-99.9", "1e6")
    given = {
        "objects": cells(-999, -999.0, -99.9, np.float32(-99.9), 1e6, 10**6, 999, None),
        "f64": np.array([-999, -99.9, 1e6, 7]),
        "f32": np.array([-999, -99.9, 1e6, 7], np.float32),
        "f16": np.array([-999, -99.9, 7, 8], np.float16),
        "i32": np.array([-999, 10**6, 7, 8], np.int32),
    }
    missing = {name: np.isnan(parse_numbers(column, markers)[0]).sum() for name, column in given.items()}
    assert missing == {"objects": 7, "f64": 3, "f32": 3, "f16": 2, "i32": 2}
    assert parse_numbers(np.array([np.inf], np.float16), markers)[1].tolist() == [True]
    for name, column in given.items():
        together = plain_numbers([column], markers)
        if name != "objects":  # which hold a scalar of NumPy
            np.testing.assert_array_equal(together, [parse_numbers(column, markers)[0]])
    texts = cells("-999", "-999.0", "-99.9", " NA ")
    assert np.isnan(parse_numbers(texts, markers)[0]).tolist() == [True, False, True, True]
