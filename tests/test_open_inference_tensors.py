"""Tensors of the Open Inference Protocol, and matrices of numbers, without a server: laws and refusals."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmjax.data.decode import encode_png
from mmjax.data.encode import encode
from mmjax.errors import DataError
from mmjax.schema import Column, ImageSpec, Schema
from mmjax.serving.numbers import is_matrix, numeric_batch
from mmjax.serving.open_inference_inputs import columns_of
from mmjax.serving.open_inference_model import inputs_of
from mmjax.serving.open_inference_tensors import DTYPES, Tensor, from_binary, from_json, pack_texts
from mmjax.serving.table_bodies import (
    TableRequest,
    decode_numbers,
    decode_table,
    matrix_of_rows,
    table_columns,
    table_rows,
)
from mmjax.serving.wire import Refused
from tests.untrained import KINDS, NUMBERS, picture


def columns(schema: Schema, values: np.ndarray) -> dict[str, np.ndarray]:
    return {column.name: values[:, i] for i, column in enumerate(schema.features)}


NUMBER_TYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i1", "<i4", "<i8", "<u1", "<u8"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_matrix_becomes_what_the_encoder_makes_of_its_columns(data: st.DataObject):
    offsets = data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.7e9, -0.1, 1e-30]), min_size=1, max_size=4))
    markers = data.draw(st.sampled_from([(), ("?",), ("-999.0", "7")]))
    made = tuple(Column(name=f"c{i}", kind="numeric", offset=offset) for i, offset in enumerate(offsets))
    schema = Schema(target=NUMBERS.target, columns=made, missing_markers=markers)
    assert is_matrix(schema)
    dtype = data.draw(NUMBER_TYPES)
    values = data.draw(arrays(dtype, (data.draw(st.integers(1, 4)), len(offsets))))
    outcome = []
    for work in (lambda: encode(schema, columns(schema, values)), lambda: numeric_batch(schema, values)):
        try:
            outcome.append(work())
        except DataError as error:
            outcome.append(error.problems)
    expected, got = outcome
    if isinstance(expected, tuple):
        assert got == expected
        return
    assert list(got) == list(expected) == ["numeric"]
    assert got["numeric"].dtype == expected["numeric"].dtype == np.float32
    np.testing.assert_array_equal(got["numeric"], expected["numeric"])
    assert got["numeric"].flags.c_contiguous


CELLS = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([-999, 7])
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_numbers_in_json_are_read_as_their_columns_are(data: st.DataObject):
    rows = data.draw(st.lists(st.lists(CELLS, min_size=5, max_size=5), min_size=1, max_size=4))
    document = {"features": rows}
    if data.draw(st.booleans()):
        document = {"rows": [dict(zip(["x4", "x3", "x2", "x1", "x0"], row[::-1], strict=True)) for row in rows]}
    body = json.dumps(document).encode()
    try:
        expected = encode(NUMBERS, table_columns(NUMBERS, decode_table(body)))
    except DataError as error:
        with pytest.raises(DataError) as refused:
            numeric_batch(NUMBERS, matrix_of_rows(table_rows(NUMBERS, numbers(body))))
        places = [[line.split(":")[0] for line in told.problems] for told in (error, refused.value)]
        assert places[0] == places[1]
        return
    got = numeric_batch(NUMBERS, matrix_of_rows(table_rows(NUMBERS, numbers(body))))
    np.testing.assert_array_equal(got["numeric"].view(np.uint32), expected["numeric"].view(np.uint32))


def numbers(body: bytes) -> TableRequest[float | None]:
    request = decode_numbers(body)
    assert request is not None
    return request


def test_texts_and_booleans_are_no_numbers():
    for cell in ('"1.5"', "true", '"NA"', "[]", "1e999", "NaN"):
        assert decode_numbers(f'{{"features": [[{cell}]]}}'.encode()) is None
    for body in (b'{"features": [[1]], "features": [[1]]}', b'{"rows": [{"a": 1, "a": 2}]}'):
        with pytest.raises(Refused, match="expected each key once"):
            decode_numbers(body)
    assert numbers(b'{"rows": [{"a:b": 1}]}').rows == [{"a:b": 1.0}]


# ---- tensors


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=5))
def test_texts_survive_raw_bytes(texts: list[str]):
    got = from_binary("BYTES", [len(texts)], memoryview(pack_texts(texts)), "input 'x'")
    assert [cell.decode() for cell in got.tolist()] == texts


@pytest.mark.parametrize(
    ("data", "shape", "told"),
    [
        (struct.pack("<I", 5) + b"abc", [1], "element 1: expected 5 bytes, got the end of data"),
        (struct.pack("<I", 0xFFFFFFFF), [1], "element 1: expected 4,294,967,295 bytes, got the end"),
        (pack_texts(["a", "b"]), [1], "expected 5 bytes in 1 elements, got 5 more"),
        (b"\x00", [1], "expected 1 elements of BYTES, got 1 bytes"),
        (pack_texts(["abcd"]), [2], "element 2: expected"),
        (b"", [1 << 39], "elements of BYTES, got 0 bytes"),
    ],
)
def test_raw_texts_that_do_not_add_up_are_refused(data: bytes, shape: list[int], told: str):
    with pytest.raises(Refused, match=told) as refused:
        from_binary("BYTES", shape, memoryview(data), "input 'x'")
    assert refused.value.status == 400


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nested_and_flat_json_and_raw_bytes_are_one_tensor(data: st.DataObject):
    datatype = data.draw(st.sampled_from(sorted(set(DTYPES) - {"FP16"})))
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    limits = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    values = data.draw(arrays(DTYPES[datatype], tuple(shape), elements=limits or None))
    expected = from_binary(datatype, shape, memoryview(values.tobytes()), "x")
    np.testing.assert_array_equal(expected, values)
    for told in (values.tolist(), values.reshape(-1).tolist()):
        got = from_json(datatype, shape, json.dumps(told).encode(), "x")
        assert got.shape == tuple(shape)
        np.testing.assert_array_equal(got.astype(values.dtype), values)


def test_raw_booleans_are_0_and_1():
    np.testing.assert_array_equal(from_binary("BOOL", [2], memoryview(b"\x00\x01"), "x"), [False, True])
    with pytest.raises(Refused, match="x: expected bytes 0 and 1 for BOOL"):
        from_binary("BOOL", [2], memoryview(b"\x00\x02"), "x")


def test_a_model_of_columns_and_images_has_an_input_for_each():
    size, colour = KINDS.columns[0], KINDS.columns[2]
    image = ImageSpec(columns=("front", "back"), height_px=4, width_px=4)
    schema = Schema(target=KINDS.target, columns=(size, colour), image=image)
    assert [(spec.name, spec.datatype) for spec in inputs_of(schema)] == [
        ("size", "FP32"),
        ("colour", "BYTES"),
        ("front", "BYTES"),
        ("back", "BYTES"),
    ]
    file, pixels = encode_png(picture(9)), np.stack([picture(9), picture(9)])
    given = (
        Tensor("back", "UINT8", pixels),
        Tensor("front", "BYTES", np.array([file, file], object)),
        Tensor("colour", "BYTES", np.array([b"red", None], object)),
        Tensor("size", "FP32", np.array([1, 2], np.float32)),
    )
    batch = encode(schema, columns_of(schema, given))
    np.testing.assert_array_equal(batch["image"][:, 0], batch["image"][:, 1])
    assert batch["category"].tolist() == [[1], [0]]
    with pytest.raises(Refused, match="inputs: expected as many rows in each, got 'back' 2, 'front' 1"):
        columns_of(schema, (given[0], Tensor("front", "BYTES", np.array([file], object)), *given[2:]))
    with pytest.raises(Refused, match="input 'colour', element 2: expected text in UTF-8"):
        columns_of(schema, (*given[:2], Tensor("colour", "BYTES", np.array([b"a", b"\xff"], object)), given[3]))
