"""The Open Inference Protocol as laws: the same bits as `/predict/tabular`, and 2xx or 4xx with words for anything."""

import gzip
import json
import queue
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.decode import encode_png
from mmjax.schema import Schema
from mmjax.serving.open_inference_tensors import DTYPES, pack_texts
from mmjax.serving.wire import MAX_IMAGES, MAX_ROWS, MAX_TABLE_BYTES, MAX_TENSOR_BYTES
from tests.inference_server import Answer, Server
from tests.untrained import NUMBERS, PRICE, kinds_columns, matrix, picture

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(untrained_server: Server) -> Server:
    return untrained_server


def tensor(name: str, shape: list[int], datatype: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, **more}


def plain(values: np.ndarray = matrix(NUMBERS, 2), **more: Any) -> dict[str, Any]:
    """A sound request for `numbers`, in JSON."""
    return {"inputs": [tensor("features", list(values.shape), "FP32", data=values.tolist())], **more}


def binary(values: np.ndarray, datatype: str = "FP32", **more: Any) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of a sound request for `numbers`, as raw bytes."""
    raw = values.tobytes()
    given = tensor("features", list(values.shape), datatype, parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [given], **more}).encode()
    return head + raw, {LENGTH: str(len(head))}


def outputs(answer: Answer) -> dict[str, Any]:
    """Outputs by name: JSON data, or arrays of raw bytes (texts as they are packed)."""
    assert answer.status == 200, answer.body
    length = int(answer.headers.get(LENGTH.lower(), len(answer.body)))
    document, raw, found = json.loads(answer.body[:length]), answer.body[length:], {}
    for output in document["outputs"]:
        if "data" in output:
            found[output["name"]] = output["data"]
            continue
        size = output["parameters"]["binary_data_size"]
        part, raw = raw[:size], raw[size:]
        dtype = DTYPES.get(output["datatype"])
        found[output["name"]] = part if dtype is None else np.frombuffer(part, dtype).reshape(output["shape"])
    assert raw == b""
    return found


# ---- the same numbers


@pytest.mark.parametrize(("name", "schema"), [("numbers", NUMBERS), ("price", PRICE)])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_a_matrix_gets_the_bits_of_predict_tabular(server: Server, name: str, schema: Schema, rows: int):
    values = matrix(schema, rows).astype(np.float64) + np.array([column.offset for column in schema.features])
    values[0, 0] = np.nan
    cells = [[None if cell != cell else cell for cell in row] for row in values.tolist()]
    asked, path = {"features": cells, "model": name, "version": 1}, f"{name}/versions/1"
    told = server.ask("POST", "/predict/tabular", json.dumps(asked).encode()).json
    data = tensor("features", list(values.shape), "FP64", data=cells)
    flat = data | {"data": [cell for row in cells for cell in row], "datatype": "FP32"}
    ways = [server.infer(path, {"inputs": [way]}) for way in (data, flat)]
    ways.append(server.infer(path, *binary(values, "FP64")))
    for got in map(outputs, ways):
        np.testing.assert_array_equal(np.ravel(got["predictions"]), told["predictions"])
        if told["labels"]:
            assert got["labels"] == told["labels"]
            np.testing.assert_array_equal(got["probabilities"], np.ravel(np.float32(told["probabilities"])))
    raw = outputs(server.infer(path, *binary(values, "FP64", parameters={"binary_data_output": True})))
    np.testing.assert_array_equal(raw["predictions"], told["predictions"])
    if told["labels"]:
        np.testing.assert_array_equal(raw["probabilities"], np.float32(told["probabilities"]))
        assert raw["labels"] == pack_texts(told["labels"])


def test_columns_of_every_kind_get_the_bits_of_predict_tabular(server: Server):
    cells = kinds_columns(20)
    cells["size"][3] = 1e-45
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    told = server.ask("POST", "/predict/tabular", json.dumps({"rows": rows, "model": "kinds"}).encode()).json
    kinds = {"size": "FP32"}
    inputs = [tensor(name, [20], kinds.get(name, "BYTES"), data=cells[name]) for name in cells]
    nested = [item | {"shape": [20, 1], "data": [[cell] for cell in item["data"]]} for item in inputs]
    for asked in (inputs, nested):
        got = outputs(server.infer("kinds", {"inputs": asked}))
        assert got["labels"] == told["labels"]
        np.testing.assert_array_equal(got["probabilities"], np.ravel(np.float32(told["probabilities"])))


def test_numbers_and_booleans_are_categories_too(server: Server):
    def ask(colour: dict[str, Any], flag: dict[str, Any]) -> list[float]:
        rest = [tensor("size", [2], "INT32", data=[1, -2]), tensor("when", [2], "BYTES", data=["2024-01-01", None])]
        return outputs(server.infer("kinds", {"inputs": [*rest, colour, flag]}))["probabilities"]

    texts = tensor("colour", [2], "BYTES", data=["1", "red"]), tensor("flag", [2], "BYTES", data=["yes", "no"])
    assert ask(*texts) == ask(texts[0], tensor("flag", [2], "BOOL", data=[True, False]))
    number = tensor("colour", [2], "INT64", data=[1, 1])
    assert ask(number, texts[1])[:2] == ask(*texts)[:2]


def test_a_body_of_nothing_but_one_tensor(server: Server):
    values = matrix(NUMBERS, 4)
    told = outputs(server.infer("numbers", *binary(values, parameters={"binary_data_output": True})))
    got = outputs(server.infer("numbers", values.tobytes(), {LENGTH: "0"}))
    assert list(got) == ["probabilities", "predictions", "labels"]
    np.testing.assert_array_equal(got["probabilities"], told["probabilities"])
    file = encode_png(picture(50))
    shown = outputs(server.infer("shades", file, {LENGTH: "0"}))
    told = server.ask("POST", "/predict/image", file, {"content-type": "image/png"}).json
    np.testing.assert_array_equal(shown["probabilities"], np.float32(told["probabilities"]))


def test_outputs_are_those_asked_in_order_each_in_its_way(server: Server):
    asked = [
        {"name": "labels", "parameters": {"binary_data": True}},
        {"name": "predictions", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 9}},
    ]
    answer = server.infer("numbers", plain(outputs=asked, id="mine", parameters={"binary_data_output": True}))
    assert answer.headers["content-type"] == "application/octet-stream"
    got = outputs(answer)
    assert list(got) == ["labels", "predictions", "probabilities"]
    assert got["labels"] == pack_texts([NUMBERS.target.classes[i] for i in got["predictions"]])
    assert got["probabilities"].count(":ü".encode()) == 2, "no more classes than there are"
    head = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    assert (head["id"], head["model_version"]) == ("mine", "1")
    answer = server.infer("numbers", plain(outputs=[{"name": "labels"}]))
    assert answer.headers["content-type"] == "application/json"
    assert LENGTH.lower() not in answer.headers
    assert set(answer.json) == {"model_name", "model_version", "outputs"}


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_are_inflated_and_replies_packed_where_just_that_is_asked(server: Server, coding: str, pack: Any):
    body, headers = binary(matrix(NUMBERS, 50))
    expected = outputs(server.infer("numbers", body, headers))
    got = server.infer("numbers", pack(body), headers | {"Content-Encoding": coding, "Accept-Encoding": coding})
    assert got.headers["content-encoding"] == coding
    unpack = gzip.decompress if coding == "gzip" else zlib.decompress
    assert outputs(got._replace(body=unpack(got.body))) == expected
    offered = server.infer("numbers", body, headers | {"Accept-Encoding": "gzip, deflate, br"})
    assert "content-encoding" not in offered.headers
    small = server.infer("numbers", plain(), {"Accept-Encoding": coding})
    assert "content-encoding" not in small.headers


# ---- what is refused


def check_refusal(answer: Answer, status: int, told: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert told in "\n".join(answer.json["errors"])
    assert answer.json["error"]
    assert "Traceback" not in answer.json["error"]
    assert len(answer.json["error"]) < 5000, "not what was sent"


def changed(**changes: Any) -> dict[str, Any]:
    """A sound request with its input changed."""
    request = plain()
    request["inputs"][0] |= changes
    return request


NESTED = b'{"inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": '
ALL = [0.0] * 10
BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "body: expected JSON"),
    (b"{", 400, "body: expected JSON"),
    (b"\xef\xbb\xbf{}", 400, "body: expected JSON"),
    (json.dumps(plain()).encode("utf-16"), 400, "body: expected JSON"),
    (b'{"inputs": [], "id": "\xff"}', 400, "body: expected JSON"),
    ([], 400, "body: expected an object, got a list"),
    ({}, 400, "missing required field `inputs`"),
    ({"inputs": []}, 400, "input 'features': expected one, got none"),
    (plain(model="numbers"), 400, "unknown field `model`"),
    ({"x" * 100_000: 1}, 400, "unknown field `xxx"),
    (plain(id=7), 400, "id: expected a text or null, got a whole number"),
    (plain(id="x" * 1025), 400, "id: expected at most 1,024 characters"),
    (NESTED + b"[" * 100_000, 400, "a deeper nesting"),
    (NESTED + b"[" * 100 + b"]" * 100 + b"}]}", 400, "data, element 1, 1: expected a number or null, got a list"),
    (NESTED + b'{"a": 1}}]}', 400, "input 'features', data: expected a list, got an object"),
    (
        NESTED + b"[NaN, 1, 2, 3, 4]}]}",
        400,
        "body: expected JSON, got NaN, which JSON has not; write null for a missing number, or send binary data",
    ),
    (NESTED + b"[1e999, 1, 2, 3, 4]}]}", 400, "number out of range"),
    (NESTED + b"[" + b"9" * 400 + b", 1, 2, 3, 4]}]}", 400, "number out of range"),
    (NESTED + b"[1e39, 1, 2, 3, 4]}]}", 400, "column 'x0', row 1: expected a number within"),
    (NESTED + b"[1, 2, 3, 4, 5]}], \"inputs\": []}", 400, "body: expected each key once, got 'inputs' 2 times"),
    (NESTED + b'[1, 2, 3, 4, 5], "shape": [1, 5]}]}', 400, "expected each key once, got 'shape' 2 times"),
    (changed(data=["1.5"] * 10), 400, "data, element 1: expected a number or null, got a text"),
    (changed(data=[True] * 10), 400, "data, element 1: expected a number or null, got true or false"),
    (changed(data=[[1, 2], [3]]), 400, "data, row 1: expected 5 elements as in shape, got 2"),
    (changed(data=[ALL[:5]]), 400, "data: expected 2 elements as in shape, got 1"),
    (changed(data=ALL[:9]), 400, "data: expected 10 elements as in shape, got 9"),
    (changed(shape=[-1, 5]), 400, "shape: expected dimensions of 0 or more, got -1"),
    (changed(shape=[2.0, 5]), 400, "inputs[0].shape[0]: expected a whole number, got a number"),
    (changed(shape=[1 << 39, 1 << 39]), 400, "shape: expected a tensor that fits into memory"),
    (changed(shape=[1 << 64, 5]), 400, "shape: expected dimensions of 0 or more, got 18446744073709551616"),
    (b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [' + b"9" * 9999 + b"]}]}", 400, ""),
    (changed(shape=[]), 400, "shape: expected 1 to 4 dimensions, got 0"),
    (changed(shape=[1] * 9), 400, "shape: expected 1 to 4 dimensions, got 9"),
    (changed(shape=[0, 5], data=[]), 400, "inputs: expected at least one row, got none"),
    (changed(shape=[10]), 400, "expected a number or null, got a list"),
    (changed(shape=[10], data=ALL), 400, "shape: expected [-1, 5] (x0, x1, x2, x3, x4), got [10]"),
    (changed(shape=[5, 2], data=ALL), 400, "shape: expected [-1, 5] (x0, x1, x2, x3, x4), got [5, 2]"),
    (changed(shape=[1000, 5], data=[0] * 5000, datatype="INT8"), 200, ""),
    (changed(shape=[MAX_ROWS + 1, 5], data=[0] * 5 * (MAX_ROWS + 1)), 413, f"at most {MAX_ROWS:,} rows"),
    (changed(datatype="INT32"), 400, "expected a whole number, got a number"),
    (changed(datatype="INT8", data=[200] * 10), 400, "element 1: expected -128 to 127 for INT8, got 200"),
    (changed(datatype="UINT64", data=[1 << 70] * 10), 400, "element 1: expected 0 to"),
    (changed(datatype="FP16"), 400, "expected FP16 as binary data, got JSON"),
    (changed(datatype="BF16"), 400, "datatype: expected one of BYTES, BOOL"),
    (changed(datatype="STRING"), 400, "datatype: expected one of BYTES, BOOL"),
    (changed(datatype="BYTES", data=["1"] * 10), 400, "datatype: expected FP32 or FP64"),
    (changed(datatype="BYTES", shape=[MAX_ROWS + 1]), 400, "expected at most 4,096 elements of BYTES, got 4,097"),
    ({"inputs": plain()["inputs"] * 4097}, 413, "inputs: expected at most 4,096 of them, got 4,097"),
    (changed(datatype="BOOL", data=[True] * 10), 400, "datatype: expected FP32 or FP64"),
    (changed(parameters={"binary_data_size": 40}), 400, "or parameters.binary_data_size and raw bytes, got both"),
    (changed(parameters={"binary_data_sise": 40}), 400, "did you mean 'binary_data_size'"),
    (changed(parameters={"shared_memory_region": "a"}), 400, "shared memory is not supported"),
    (plain(parameters={"sequence_id": 4}), 400, "sequences of requests are not supported"),
    (plain(parameters={"timeout": "1"}), 400, "timeout: expected int, got str"),
    (plain(parameters={"timeout": True}), 400, "timeout: expected int, got bool"),
    (plain(parameters={"timeout": -1}), 400, "timeout: expected microseconds"),
    (plain(parameters={"deterministic": 1}), 400, "deterministic: expected bool, got int"),
    (plain(parameters={"a": {}}), 400, "parameters[...]: expected"),
    (plain(outputs=[{"name": "score"}]), 400, "output 'score': unknown; there are probabilities, predictions, labels"),
    (plain(outputs=[{"name": "labels"}] * 2), 400, "output 'labels': expected it once, got it again"),
    (plain(outputs=[{"name": "labels", "parameters": {"classification": 1}}]), 400, "expected it of 'probabilities'"),
    (plain(outputs=[{"name": "probabilities", "parameters": {"classification": 0}}]), 400, "expected 1 class or more"),
    (plain(outputs=[{"name": "labels", "parameters": {"binary_data": 1}}]), 400, "binary_data: expected bool, got int"),
    ({"inputs": plain()["inputs"] * 2}, 400, "input 'features': expected one, got 2"),
    ({"inputs": [*plain()["inputs"], tensor("x", [1], "FP32", data=[1])]}, 400, "input 'x': unknown"),
    (plain(outputs=None, parameters=None, id=None), 200, ""),
    (plain(parameters={"priority": 3, "timeout": 0}), 200, ""),
    (changed(data=[None] * 10), 200, ""),
    (b" " * (MAX_TABLE_BYTES + 1), 413, "bytes of JSON"),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(server: Server) -> dict[str, Any]:
    return outputs(server.infer("numbers", plain()))


@pytest.mark.parametrize(("document", "status", "told"), BAD, ids=lambda value: str(value)[:50])
def test_bad_requests_are_refused_by_name(server: Server, good: dict[str, Any], document: Any, status: int, told: str):
    answer = server.infer("numbers", document)
    if status == 200:
        outputs(answer)
    else:
        check_refusal(answer, status, told)
    assert outputs(server.infer("numbers", plain())) == good


def raw(body: bytes, length: object, **headers: str) -> tuple[bytes, dict[str, str]]:
    return body, {LENGTH: str(length), **headers}


BODY, HEAD = binary(matrix(NUMBERS, 2))
SIZE = int(HEAD[LENGTH])
PACKED = gzip.compress(BODY, mtime=0)
BAD_BINARY: list[tuple[bytes, dict[str, str], int, str]] = [
    (*raw(BODY, len(BODY) + 1), 400, f"expected 1 to {len(BODY):,}, the length of the body"),
    (*raw(BODY, "-1"), 400, "expected the length of the JSON in bytes, got '-1'"),
    (*raw(BODY, "1e2"), 400, "expected the length of the JSON in bytes"),
    (*raw(BODY, "9" * 30), 400, "expected the length of the JSON in bytes"),
    (*raw(BODY, SIZE - 1), 400, "body: expected JSON"),
    (*raw(BODY, SIZE + 1), 400, "body: expected JSON"),
    (*raw(BODY[:-1], SIZE), 400, "binary_data_size: expected 40 bytes after the JSON, got 39"),
    (*raw(BODY + b"x", SIZE), 400, "body: expected 40 bytes of binary data after the JSON, as the inputs say, got 41"),
    (*raw(BODY.replace(b"[2, 5]", b"[3, 5]"), SIZE), 400, "expected 60 bytes for FP32 of shape [3, 5], got 40"),
    (*raw(BODY.replace(b'size": 40', b'size": -4'), SIZE), 400, "binary_data_size: expected 0 or more bytes, got -4"),
    (BODY[:SIZE], {}, 400, "binary_data_size: expected 40 bytes after the JSON, got 0"),
    (*raw(b"", 0), 400, "inputs: expected at least one row"),
    (*raw(b"12345678", 0), 400, "body: expected 0 bytes for FP32 of shape [0, 5], got 8"),
    (*raw(BODY, SIZE, **{"Content-Type": "text/html"}), 415, "add -H 'Content-Type: application/json'"),
    (*raw(BODY, SIZE, **{"Content-Encoding": "br"}), 415, "Content-Encoding: expected gzip, deflate or none, got 'br'"),
    (*raw(BODY, SIZE, **{"Content-Encoding": "gzip"}), 400, "body: expected gzip data, got something else"),
    (*raw(PACKED[:-9], SIZE, **{"Content-Encoding": "gzip"}), 400, "one whole gzip stream, got only"),
    (*raw(PACKED * 2, SIZE, **{"Content-Encoding": "gzip"}), 400, "one whole gzip stream, got more"),
    (*raw(zlib.compress(BODY), SIZE, **{"Content-Encoding": "gzip"}), 400, "body: expected gzip data"),
    (*raw(BODY, SIZE, **{"X-Request-Timeout-Ms": "soon"}), 400, "X-Request-Timeout-Ms"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status", "told"), BAD_BINARY, ids=lambda value: str(value)[:40])
def test_bad_raw_tensors_are_refused_by_name(server: Server, good, body: bytes, headers, status: int, told: str):
    check_refusal(server.infer("numbers", body, headers), status, told)
    assert outputs(server.infer("numbers", plain())) == good


def test_a_bomb_is_not_inflated(server: Server, good: dict[str, Any]):
    bomb = gzip.compress(bytes(MAX_TENSOR_BYTES + 1), 9)
    assert len(bomb) < 100_000
    told = f"expected at most {MAX_TENSOR_BYTES:,} bytes once inflated"
    check_refusal(server.infer("numbers", bomb, {"Content-Encoding": "gzip"}), 413, told)
    assert outputs(server.infer("numbers", plain())) == good


def test_bad_columns_and_images_are_refused_by_name(server: Server):
    def refuse(model: str, inputs: list[dict[str, Any]], told: str, status: int = 400) -> None:
        check_refusal(server.infer(model, {"inputs": inputs}), status, told)

    sound = [
        tensor("size", [1], "FP32", data=[1]),
        tensor("colour", [1], "BYTES", data=["red"]),
        tensor("flag", [1], "BYTES", data=["yes"]),
    ]
    when = tensor("when", [1], "BYTES", data=["2024-01-01"])
    refuse("kinds", sound, "input 'when': expected one, got none")
    refuse("kinds", [*sound, when | {"data": ["soon"]}], "column 'when', row 1: expected a date")
    refuse("kinds", [*sound, when | {"datatype": "FP32", "data": [1]}], "input 'when', datatype: expected BYTES")
    refuse("kinds", [*sound, when | {"shape": [2], "data": ["", ""]}], "expected as many rows in each, got 'size' 1")
    refuse("kinds", [*sound, when | {"shape": [1, 1, 1]}], "shape: expected [-1] or [-1, 1], got [1, 1, 1]")
    refuse("kinds", [*sound, when, tensor("id", [1], "BYTES", data=["7"])], "input 'id': unknown")
    refuse("kinds", [*sound, when | {"shape": [1, 1], "data": [["2024-01-01", "x"]]}], "row 1: expected 1 element as")
    pixels = tensor("image", [1, 2, 2, 3], "UINT8", data=[0] * 12)
    refuse("shades", [pixels | {"shape": [1, 3, 4, 1]}], "shape: expected [-1, H, W, 3] with pixels, got [1, 3, 4, 1]")
    refuse("shades", [pixels | {"shape": [1, 0, 0, 3], "data": []}], "[-1, H, W, 3] with pixels, got [1, 0, 0, 3]")
    refuse("shades", [pixels | {"data": [256] * 12}], "element 1: expected 0 to 255 for UINT8, got 256")
    refuse("shades", [tensor("image", [1], "BYTES", data=["cat.png"])], "or pixels as UINT8, got JSON texts")
    many = MAX_IMAGES + 1
    told = f"at most {MAX_IMAGES} rows"
    refuse("shades", [tensor("image", [many, 1, 1, 3], "UINT8", data=[0] * 3 * many)], told, 413)
    check_refusal(server.infer("shades", b"no image", {LENGTH: "0"}), 400, "image 1: expected JPEG")
    check_refusal(server.infer("kinds", b"1234", {LENGTH: "0"}), 400, "expected a request with JSON for a model of 4")
    body = json.dumps(plain()).encode()
    check_refusal(server.ask("POST", "/v2/models/numbers/infer?a=1", body), 400, "query: expected nothing")
    for version in ("2", "01", "x", "%00", "..", "-1"):
        check_refusal(server.infer(f"numbers/versions/{version}", plain()), 404, "no ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/numbers/infer", 405),
        ("POST", "/v2/models/numbers", 405),
        ("GET", "/v2/models/..%2fnumbers", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nope/stats", 404),
        ("GET", "/v2/models/nope/config", 404),
        ("POST", "/v2/repository/models/numbers/load", 404),
        ("POST", "/v2/systemsharedmemory/region/a/register", 404),
    ],
)
def test_other_paths_are_refused_in_the_same_words(server: Server, method: str, path: str, status: int):
    check_refusal(server.ask(method, path), status, "")


def test_the_index_takes_its_one_filter_and_nothing_else(server: Server):
    every = server.ask("POST", "/v2/repository/index").json
    assert server.ask("POST", "/v2/repository/index", b'{"ready": true}').json == every
    assert [model["name"] for model in every] == ["numbers", "kinds", "shades", "price", "price"]
    for body in (b"[]", b'{"ready": 1}', b"{", b'{"x": 1}', b"\xff", b"[" * 4000):
        check_refusal(server.ask("POST", "/v2/repository/index", body), 400, "body: expected nothing or")
    assert server.ask("POST", "/v2/repository/index", b" " * 5000).status == 413


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def replaced(draw: Any, value: Any) -> Any:
    """The value with some part of it replaced, removed, or added."""
    if isinstance(value, dict) and draw(st.booleans()):
        key = draw(st.sampled_from([*value, "parameters", "id"]))
        rest = {name: item for name, item in value.items() if name != key}
        return rest if draw(st.booleans()) else rest | {key: replaced(draw, value.get(key))}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], replaced(draw, value[at]), *value[at + 1 :]][: draw(st.integers(0, len(value) + 2))]
    return draw(JUNK)


def ask_any_json(server: Server, data: st.DataObject) -> None:
    asked = plain(id="x", outputs=[{"name": "labels", "parameters": {"binary_data": False}}], parameters={"timeout": 0})
    model = data.draw(st.sampled_from(["numbers", "kinds", "shades", "price/versions/1"]))
    check_any(server.infer(model, replaced(data.draw, asked)))


def ask_any_bytes(server: Server, data: st.DataObject) -> None:
    at, cut = data.draw(st.integers(0, len(BODY))), data.draw(st.integers(0, len(BODY)))
    body = (BODY[:at] + data.draw(st.binary(max_size=8)) + BODY[at:])[: cut if data.draw(st.booleans()) else None]
    length = data.draw(st.sampled_from([SIZE, 0, len(body)]) | st.integers(0, len(BODY) + 9))
    headers = {LENGTH: str(length)}
    if data.draw(st.booleans()):
        headers["Content-Encoding"] = data.draw(st.sampled_from(["gzip", "deflate", "identity"]))
    check_any(server.infer(data.draw(st.sampled_from(["numbers", "shades"])), body, headers))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_json_is_answered_or_refused_with_words(server: Server, data: st.DataObject):
    ask_any_json(server, data)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_bytes_are_answered_or_refused_with_words(server: Server, data: st.DataObject):
    ask_any_bytes(server, data)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(st.data())
def test_thousands_of_bodies_are_answered_or_refused_with_words(server: Server, data: st.DataObject):
    (ask_any_json if data.draw(st.booleans()) else ask_any_bytes)(server, data)


def check_any(answer: Answer) -> None:
    assert answer.status == 200 or 400 <= answer.status < 500, answer.body
    if answer.status == 200:
        outputs(answer)
    else:
        check_refusal(answer, answer.status, "")


def test_after_all_that_a_good_request_has_the_same_bits(server: Server, good: dict[str, Any]):
    assert outputs(server.infer("numbers", plain())) == good


def test_before_it_is_ready_it_says_so(untrained_registry: Path):
    from litestar.testing import TestClient

    from mmjax.serving.app import make_app
    from mmjax.serving.engine import load_models, make_engine

    engine = make_engine(load_models(["numbers"], untrained_registry, max_batch=1), queue=1)
    warmed: queue.Queue[BaseException | None] = queue.Queue()
    with TestClient(make_app(engine, warmed=warmed.put)) as client:
        assert warmed.get(timeout=30) is None
        engine.ready.clear()
        assert client.get("/v2/health/live").json() == {"live": True}
        paths = ("/v2/health/ready", "/v2/models/numbers/ready")
        assert [client.get(path).status_code for path in paths] == [503, 503]
        early = client.post("/v2/models/numbers/infer", json=plain())
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert client.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        engine.ready.set()
        assert client.post("/v2/models/numbers/infer", json=plain()).status_code == 200
        assert client.get("/v2/models/numbers/ready").json() == {"name": "numbers", "ready": True}
