"""Everything wrong that a client can send: answered as listed, counted by reason, and good requests stay as before.

The numbers are those of the list that the server is held against: HTTP 1-17, tables 18-33, images 34-47, the Open
Inference Protocol 48-54. Each is sent as bytes over a socket of its own to the front door, run as a process with its
default limits; what needs short limits is in `test_limits.py`, the default ones run in `make soak`.
"""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mmjax.artifact.models import load_model
from mmjax.serving.limits import Limits
from mmjax.serving.wire import MAX_ROWS, MAX_TABLE_BYTES
from tests import bad_images as images
from tests.live import GOOD, ROW, Client, door, make_home, png, read_reply, request, thread


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def server(registry: Path) -> Iterator[Client]:
    with door(registry, "--model", "kinds", "--model", "shades", "--max-batch", "64") as client:
        yield client


@pytest.fixture(scope="module")
def good(server: Client) -> Any:
    return server.good()


class Bad(NamedTuple):
    """A request that is wrong: its number in the list, what is sent, the reply that is expected."""

    number: int
    name: str
    sent: tuple[bytes, ...]
    status: int
    reason: str
    told: str = ""

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


def get(path: str, *headers: str) -> bytes:
    return request("GET", path, headers=headers)


def table(body: bytes | str, *headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return request("POST", "/predict/tabular", data, ["Content-Type: application/json", *headers])


def row(**changes: Any) -> bytes:
    return table(json.dumps({"rows": [ROW | changes]}))


def listed(cells: str) -> bytes:
    return table(f'{{"features": {cells}}}')


def image(body: bytes, kind: str = "image/png", *headers: str) -> bytes:
    return request("POST", "/predict/image", body, [f"Content-Type: {kind}", *headers])


def in_form(*parts: tuple[str, str | None, bytes]) -> bytes:
    return image(images.form(*parts), "multipart/form-data; boundary=line")


def v2_inputs(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    inputs = {
        "size": {"datatype": "FP32", "data": [0.25]},
        "weight": {"datatype": "FP32", "data": [3.0]},
        "colour": {"datatype": "BYTES", "data": ["red"]},
    }
    return [{"name": name, "shape": [1], **given, **changes.get(name, {})} for name, given in inputs.items()]


def v2(document: dict[str, Any] | bytes, *headers: str, model: str = "kinds", tail: bytes = b"") -> bytes:
    body = (document if isinstance(document, bytes) else json.dumps(document).encode()) + tail
    return request("POST", f"/v2/models/{model}/infer", body, headers)


def binary(size: int, tail: bytes, told: int | None = None) -> bytes:
    """A request with one raw tensor."""
    inputs = v2_inputs()
    del inputs[0]["data"]
    inputs[0]["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": inputs}).encode()
    return v2(head, f"Inference-Header-Content-Length: {len(head) if told is None else told}", tail=tail)


CHUNKED = "Transfer-Encoding: chunked"
MEBIBYTE = b"100000\r\n" + b" " * 2**20 + b"\r\n"
NO_BODY = "POST /predict/tabular HTTP/1.1\r\nHost: x\r\n"
HTTP = [
    Bad(1, "long-header", (get("/health", "X: " + "a" * 400_000),), 431, "large-headers", "at most 32,768 bytes"),
    Bad(1, "no-host", (b"GET /health HTTP/1.1\r\n\r\n",), 400, "bad-host", "Host: expected"),
    Bad(1, "no-version", (b"GET /health\r\n\r\n",), 400, "bad-http"),
    Bad(1, "no-http", (b"\x16\x03\x01\x02\x00\x01\x00" * 20,), 400, "bad-http"),
    Bad(2, "20,000-headers", (get("/", *[f"X-{i}: 1" for i in range(20_000)]),), 431, "large-headers"),
    Bad(2, "101-headers", (get("/", *["X: 1"] * 100),), 431, "many-headers", "expected at most 100, got more"),
    Bad(3, "300-KB-URL", (get("/" + "a" * 300_000),), 400, "long-url", "URL: expected at most 8,192 bytes"),
    Bad(3, "9-KB-URL", (get("/models?" + "a" * 9_000),), 400, "long-url"),
    Bad(7, "negative-length", (f"{NO_BODY}Content-Length: -1\r\n\r\n".encode(),), 400, "bad-http", "Content-Length"),
    Bad(7, "length-no-number", (f"{NO_BODY}Content-Length: abc\r\n\r\n".encode(),), 400, "bad-http", "Content-Length"),
    Bad(7, "huge-length", (f"{NO_BODY}Content-Length: {'9' * 30}\r\n\r\n".encode(),), 400, "bad-http", "overflow"),
    Bad(7, "two-lengths", (f"{NO_BODY}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}".encode(),), 400, "bad-http"),
    Bad(7, "list-of-lengths", (f"{NO_BODY}Content-Length: 2, 2\r\n\r\n{{}}".encode(),), 400, "bad-http"),
    Bad(8, "length-and-chunked", (table("0\r\n\r\n", "Content-Length: 5", CHUNKED),), 400, "bad-http"),
    Bad(8, "chunked-and-length", (table("0\r\n\r\n", CHUNKED, "Content-Length: 5"),), 400, "bad-http"),
    Bad(8, "not-chunked-last", (table("0\r\n\r\n", "Transfer-Encoding: gzip"),), 400, "bad-http"),
    Bad(9, "65k-chunks", (table("", CHUNKED), b"1\r\n \r\n" * 65_536, b"0\r\n\r\n"), 400, "many-chunks", "20,000"),
    Bad(9, "chunk-extensions", (table("", CHUNKED), b"1;" + b"a" * 2**21 + b"\r\n \r\n"), 400, "bad-chunks"),
    Bad(9, "trailers", (table("", CHUNKED), b"0\r\n" + b"X: 1\r\n" * 200 + b"\r\n"), 431, "many-headers"),
    Bad(9, "no-chunk", (table("", CHUNKED), b"xyz\r\n"), 400, "bad-http"),
    Bad(10, "long-by-length", (table("", f"Content-Length: {MAX_TABLE_BYTES + 1}"),), 413, "too-large", "8,388,608"),
    Bad(10, "image", (image(b"", "image/png", "Content-Length: 99999999"),), 413, "too-large", "16,777,216"),
    Bad(11, "long-in-chunks", (table("", CHUNKED), *[MEBIBYTE] * 9), 413, "too-large", "8,388,608 bytes"),
    Bad(13, "blank-in-host", (b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n",), 400, "bad-host"),
    Bad(13, "path-in-host", (b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n",), 400, "bad-host"),
    Bad(13, "two-hosts", (get("/health", "Host: y"),), 400, "bad-host"),
    Bad(13, "port-in-host", (b"GET /health HTTP/1.1\r\nHost: a:http\r\n\r\n",), 400, "bad-host"),
    Bad(14, "no-path", (get("/nothing"),), 404, "not-found"),
    Bad(14, "wrong-verb", (get("/predict/tabular"),), 405, "bad-method"),
    Bad(14, "no-verb", (request("BREW", "/models"),), 400, "bad-http"),
    Bad(14, "connect", (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",), 400, "bad-http"),
    Bad(14, "not-json", (request("POST", "/predict/tabular", b"a", ["Content-Type: a/b"]),), 415, "bad-content-type"),
    Bad(14, "not-an-image", (image(b"a", "text/plain"),), 415, "bad-content-type"),
    Bad(15, "gzip-bomb", (v2(gzip.compress(b" " * 200_000_000, 1), "Content-Encoding: gzip"),), 413, "too-large"),
    Bad(15, "gzip-table", (table(gzip.compress(GOOD), "Content-Encoding: gzip"),), 415, "bad-content-encoding"),
    Bad(16, "br", (table("{}", "Content-Encoding: br"),), 415, "bad-content-encoding", "got 'br'"),
    Bad(16, "br-image", (image(b"a", "image/png", "Content-Encoding: br"),), 415, "bad-content-encoding"),
    Bad(16, "br-v2", (v2({}, "Content-Encoding: br"),), 415, "bad-content-encoding"),
    Bad(17, "dots", (get("/models/..%2f..%2fetc%2fpasswd"),), 404, "not-found"),
    Bad(17, "plain-dots", (get("/models/../../etc/passwd"),), 404, "not-found"),
    Bad(17, "nul", (get("/models/%00"),), 404, "no-such-model"),
    Bad(17, "percent", (get("/models/%zz%"),), 404, "no-such-model"),
    Bad(17, "no-utf8", (get("/models/%ff%fe"),), 404, "no-such-model"),
    Bad(17, "raw-bytes", (b"GET /models/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",), 400, "bad-http"),
    Bad(17, "raw-nul", (b"GET /models/\0 HTTP/1.1\r\nHost: x\r\n\r\n",), 400, "bad-http"),
    Bad(17, "v2-dots", (v2({"inputs": v2_inputs()}, model="%2e%2e"),), 404, "no-such-model"),
]  # fmt: skip

NUMBER = "column 'size', row 1: expected a number or null, got the text "
TABLES = [
    Bad(18, "empty", (table(""),), 400, "bad-json"),
    Bad(19, "no-json", (table("size=1"),), 400, "bad-json"),
    Bad(19, "truncated", (table('{"rows": [{"size'),), 400, "bad-json"),
    Bad(19, "two-documents", (table(GOOD + GOOD),), 400, "bad-json"),
    Bad(19, "mark", (table(b"\xef\xbb\xbf" + GOOD),), 400, "bad-json"),
    Bad(19, "utf-16", (table(GOOD.decode().encode("utf-16")),), 400, "bad-json"),
    Bad(19, "no-utf-8", (table(b'{"rows": [{"colour": "\xff"}]}'),), 400, "bad-json"),
    *(Bad(20, text, (table(text),), 400, "bad-request", "an object") for text in ("[]", "null", "7", '"a"')),
    Bad(21, "deep-lists", (table("[" * 100_000),), 400, "bad-request"),
    Bad(21, "deep-closed", (table('{"features": ' + "[" * 100_000 + "]" * 100_000 + "}"),), 400, "bad-request"),
    Bad(21, "deep-objects", (table('{"rows": ' + '[{"a":' * 100_000),), 400, "bad-request"),
    Bad(21, "deep-unknown", (table('{"other": ' + "[" * 100_000 + "]" * 100_000 + "}"),), 400, "bad-request"),
    Bad(22, "no-keys", (table("{}"),), 400, "bad-request", 'exactly one of "features"'),
    Bad(22, "unknown", (table('{"instances": [[1, 2, "red"]]}'),), 400, "bad-request", "unknown field `instances`"),
    Bad(22, "misspelt", (table('{"feature": [[1, 2, "red"]]}'),), 400, "bad-request", "did you mean 'features'?"),
    Bad(22, "doubled", (table('{"rows": [{"size": 1, "size": 1}]}'),), 400, "doubled-key", "each key once, got 'size'"),
    Bad(22, "doubled-top", (table('{"rows": [], "rows": [{}]}'),), 400, "doubled-key", "'rows' 2 times"),
    Bad(22, "missing-column", (table('{"rows": [{"size": 1}]}'),), 400, "bad-row", "row 1: expected column 'weight'"),
    Bad(22, "unknown-column", (row(sise=1),), 400, "bad-row", "unknown column 'sise'; rename or remove it; did you"),
    *(Bad(23, text, (row(size=text),), 400, "bad-cell", f'{NUMBER}"{text}"') for text in ("1.5", "inf", "0x10")),
    *(Bad(24, text, (listed(f'[[{text}, 1, "red"]]'),), 400, "bad-json") for text in ("NaN", "Infinity", "-Infinity")),
    Bad(25, "1e999", (listed('[[1e999, 1, "red"]]'),), 400, "bad-cell", "column 'size', row 1: expected"),
    Bad(25, "400-digits", (listed(f'[[{"9" * 400}, 1, "red"]]'),), 400, "bad-cell", "column 'size', row 1"),
    Bad(25, "5,000-digits", (listed(f'[[{"9" * 5000}, 1, "red"]]'),), 400, "bad-cell", "column 'size', row 1"),
    Bad(26, "1e39", (row(size=1e39),), 400, "bad-cell", "column 'size', row 1: expected a number within ±3.4e38"),
    Bad(27, "bool", (row(size=True),), 400, "bad-cell", "column 'size', row 1: expected a number or null, got true"),
    Bad(27, "object", (listed('[[{}, 1, "red"]]'),), 400, "bad-request", "features, row 1, cell 1"),
    Bad(27, "list", (listed('[[1, 1, ["red"]]]'),), 400, "bad-request", "features, row 1, cell 3"),
    Bad(28, "no-rows", (listed("[]"),), 400, "no-rows"),
    Bad(28, "empty-row", (listed("[[]]"),), 400, "bad-row", "row 1: expected 3 cells (size, weight, colour), got 0"),
    Bad(29, "ragged", (listed('[[1, 2, "red"], [1, 2]]'),), 400, "bad-row", "row 2: expected 3 cells"),
    Bad(30, "wide", (listed('[[1, 2, "red", 4]]'),), 400, "bad-row", "row 1: expected 3 cells (size, weight, colour)"),
    Bad(31, "rows", (table(json.dumps({"rows": [ROW] * (MAX_ROWS + 1)})),), 413, "too-many-rows", f"{MAX_ROWS:,}"),
    Bad(31, "short-rows", (listed(f"[[]{',[]' * 500_000}]"),), 413, "too-many-rows", f"{MAX_ROWS:,} rows"),
]  # fmt: skip

FORM = "multipart/form-data"
IMAGES = [
    Bad(34, "text", (image(b"no image"),), 400, "bad-image", "expected JPEG, PNG, WebP, BMP or GIF"),
    Bad(34, "noise", (image(bytes(np.random.default_rng(0).bytes(5000))),), 400, "bad-image"),
    Bad(35, "only-magic", (image(b"\x89PNG\r\n\x1a\n"),), 400, "bad-image"),
    Bad(35, "half", (image(png(1)[:200]),), 400, "bad-image", "truncated"),
    Bad(35, "half-jpeg", (image(images.oriented(1)[:400]),), 400, "bad-image"),
    Bad(37, "tiff", (image(images.of_mode("RGB", "TIFF"), "image/tiff"),), 400, "bad-image", "TIFF"),
    Bad(37, "icon", (image(images.of_mode("RGB", "ICO")),), 400, "bad-image"),
    Bad(37, "netpbm", (image(images.of_mode("RGB", "PPM")),), 400, "bad-image"),
    Bad(38, "bomb", (image(images.bomb()),), 400, "bad-image", "pixels"),
    Bad(38, "header-only", (image(images.sized(100_000, 100_000)),), 400, "bad-image", "pixels"),
    Bad(39, "no-width", (image(images.sized(0, 10)),), 400, "bad-image"),
    Bad(39, "long-side", (image(images.sized(2**31 - 1, 1)),), 400, "bad-image"),
    Bad(44, "svg", (image(b"<svg width='1' height='1'></svg>", "image/svg+xml"),), 400, "bad-image", "SVG"),
    Bad(44, "pdf", (image(b"%PDF-1.7\n"),), 400, "bad-image", "PDF"),
    Bad(44, "eps", (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),), 400, "bad-image"),
    Bad(45, "empty", (image(b""),), 400, "bad-image", "got nothing"),
    Bad(45, "empty-file", (in_form(("file", "a.png", b"")),), 400, "bad-image", "image 1: is empty"),
    Bad(45, "no-filename", (in_form(("file", None, png(1))),), 400, "bad-multipart", "part 1: expected a file"),
    Bad(45, "wrong-field", (in_form(("picture", "a.png", png(1))),), 400, "bad-multipart", "named 'picture'"),
    Bad(45, "field", (in_form(("file", "a.png", png(1)), ("note", None, b"hi")),), 400, "bad-multipart", "part 2"),
    Bad(45, "1,001-parts", (in_form(*[("file", "a.png", b"")] * 1001),), 413, "too-many-parts", "at most 16 images"),
    Bad(45, "part-header", (in_form(("file", "a" * 20_000, png(1))),), 413, "too-many-parts", "short headers"),
    Bad(45, "no-boundary", (image(b"a", "multipart/form-data"),), 400, "bad-multipart", "boundary"),
    Bad(45, "no-end", (image(images.form(("file", "a", b""))[:-8], f"{FORM}; boundary=line"),), 400, "bad-multipart"),
    Bad(45, "odd-charset", (image(b"--b\r\n\r\n", f"{FORM}; boundary=b; charset=nonsense"),), 400, "bad-multipart"),
    Bad(46, "crlf", (in_form(("file", 'a\r\nX-Other: 1', png(1))),), 400, "bad-multipart"),
]  # fmt: skip

OPEN_INFERENCE = [
    Bad(48, "shape", (v2({"inputs": v2_inputs(size={"shape": [2]})}),), 400, "bad-tensor", "size"),
    Bad(48, "ragged", (v2({"inputs": v2_inputs(size={"data": [[0.25], [1, 2]]})}),), 400, "bad-tensor", "size"),
    Bad(48, "lengths", (v2({"inputs": v2_inputs(size={"shape": [2], "data": [1.0, 2.0]})}),), 400, "bad-tensor"),
    Bad(49, "unknown-input", (v2({"inputs": [v2_inputs()[0] | {"name": "odd"}]}),), 400, "bad-tensor", "odd"),
    Bad(49, "no-input", (v2({"inputs": v2_inputs()[:2]}),), 400, "bad-tensor", "colour"),
    Bad(49, "twice", (v2({"inputs": [*v2_inputs(), v2_inputs()[0]]}),), 400, "bad-tensor", "size"),
    Bad(49, "output", (v2({"inputs": v2_inputs(), "outputs": [{"name": "odd"}]}),), 400, "bad-output", "odd"),
    Bad(49, "output-twice", (v2({"inputs": v2_inputs(), "outputs": [{"name": "labels"}] * 2}),), 400, "bad-output"),
    Bad(50, "datatype", (v2({"inputs": v2_inputs(size={"datatype": "BYTES", "data": ["1"]})}),), 400, "bad-tensor"),
    Bad(50, "no-datatype", (v2({"inputs": v2_inputs(size={"datatype": "FP8"})}),), 400, "bad-tensor", "FP8"),
    Bad(51, "short", (binary(4, b"\0\0"),), 400, "bad-tensor"),
    Bad(51, "long", (binary(4, b"\0" * 8),), 400, "bad-tensor"),
    Bad(51, "no-float", (binary(3, b"\0" * 3),), 400, "bad-tensor"),
    Bad(51, "head-beyond", (binary(4, b"\0" * 4, told=10**6),), 400, "bad-header-length"),
    Bad(51, "head-negative", (binary(4, b"\0" * 4, told=-1),), 400, "bad-header-length"),
    Bad(52, "overflow", (v2({"inputs": v2_inputs(size={"shape": [2**32, 2**32]})}),), 400, "bad-tensor"),
    Bad(52, "negative", (v2({"inputs": v2_inputs(size={"shape": [-1]})}),), 400, "bad-tensor"),
    Bad(52, "beyond-int64", (v2({"inputs": v2_inputs(size={"shape": [2**80]})}),), 400, "bad-tensor"),
    Bad(53, "model", (v2({"inputs": v2_inputs()}, model="none"),), 404, "no-such-model"),
    Bad(53, "version", (v2({"inputs": v2_inputs()}, model="kinds/versions/7"),), 404, "no-such-model"),
    Bad(53, "version-text", (v2({"inputs": v2_inputs()}, model="kinds/versions/x"),), 404, "no-such-model"),
]  # fmt: skip


@pytest.mark.parametrize("bad", [*HTTP, *TABLES, *IMAGES, *OPEN_INFERENCE], ids=str)
def test_a_bad_request_is_refused_counted_and_forgotten(server: Client, good: Any, registry: Path, bad: Bad):
    before = server.counted("requests", status=str(bad.status), reason=bad.reason)
    reply = server.say(*bad.sent)
    assert reply.status == bad.status, reply.body
    assert server.counted("requests", status=str(bad.status), reason=bad.reason) == before + 1
    problem = reply.json
    assert problem["type"] == f"urn:mmjax:{bad.reason}"
    assert (problem["status"], problem["error"]) == (bad.status, problem["detail"])
    kind = "application/json" if b" /v2/" in bad.sent[0][:40] else "application/problem+json"
    assert reply.headers["content-type"] == kind
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert bad.told in "\n".join(problem["errors"])
    text = reply.body.decode()
    assert not any(leak in text for leak in ("Traceback", ".py", str(registry)))
    assert ("allow" in reply.headers) == (bad.status == 405)
    assert server.good() == good


def test_no_number_of_the_list_is_forgotten():
    listed = {bad.number for bad in (*HTTP, *TABLES, *IMAGES, *OPEN_INFERENCE)}
    elsewhere = {4, 5, 6, 12, 32, 33, 36, 40, 41, 42, 43, 46, 47, 54}
    assert listed | elsewhere == set(range(1, 55))


def test_12_a_body_that_ends_early_is_499_and_no_fault(server: Client, good: Any):
    before = server.counted("requests", status="499", reason="client-left")
    with server.connected() as connection:
        connection.sendall(table("{", "Content-Length: 100"))
    with server.connected() as connection:
        connection.sendall(image(png(1)[:50], "image/png", "Content-Length: 5000"))
    with server.connected() as connection:
        connection.sendall(b"GET /heal")
    for _ in range(200):
        if (now := server.counted("requests", status="499", reason="client-left")) == before + 3:
            break
        time.sleep(0.02)
    assert now == before + 3
    assert server.counted("requests", status="500") == 0
    assert server.good() == good


def test_14_a_client_that_expects_100_is_told_to_go_on(server: Client):
    with server.connected() as connection:
        connection.sendall(table("", f"Content-Length: {len(GOOD)}", "Expect: 100-continue"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(GOOD)
        assert read_reply(connection).status == 200


def test_10_what_is_too_large_by_its_length_is_refused_before_a_byte_of_it(server: Client):
    """Also to a client that waits for 100 Continue, and the connection goes on once the body has come."""
    with server.connected() as connection:
        connection.sendall(table("", f"Content-Length: {MAX_TABLE_BYTES + 1}", "Expect: 100-continue"))
        assert read_reply(connection).status == 413
        connection.sendall(b" " * (MAX_TABLE_BYTES + 1) + table(GOOD))
        assert read_reply(connection).status == 200


def test_requests_in_a_row_are_answered_in_order_and_what_follows_is_not_mixed_in(server: Client):
    with server.connected() as connection:
        connection.sendall(table(GOOD) * 5 + b"nonsense\r\n\r\n")
        file = connection.makefile("rb")
        text = file.read()
    assert text.count(b"HTTP/1.1 200 OK") == 5
    assert not text.rpartition(b"HTTP/1.1 ")[2].startswith(b"5")


@pytest.mark.parametrize("cell", ["5e-324", "1e-45", "-0.0", "-0", "123456789012345678901234567890", "3.4e38"])
def test_32_odd_numbers_are_answered_as_alone(server: Client, registry: Path, cell: str):
    reply = server.say(listed(f'[[{cell}, 1, "red"]]'))
    assert reply.status in (200, 422), reply.body
    if reply.status == 200:
        alone = load_model("kinds", registry=registry).predict([{"size": float(cell), "weight": 1, "colour": "red"}])
        np.testing.assert_array_equal(np.array(reply.json["probabilities"], np.float32), alone.probabilities)


def test_33_an_unknown_level_is_answered_by_the_models_policy_and_counted(server: Client):
    before = server.counted("cells", model="kinds:1", column="colour", kind="unknown")
    unknown, missing = (server.say(row(colour=cell)) for cell in ("mauve", None))
    assert unknown.json["probabilities"] == missing.json["probabilities"]
    marked, empty = (server.say(row(size=cell)) for cell in ("NA", None))
    assert marked.json["probabilities"] == empty.json["probabilities"], "missing markers mean missing, as in the CSV"
    assert server.counted("cells", model="kinds:1", column="colour", kind="unknown") == before + 1


def test_36_flipped_bits_are_an_image_or_none_and_nothing_else(server: Client, good: Any):
    told = {server.say(image(images.flipped(seed))).status for seed in range(60)}
    assert told <= {200, 400}
    assert server.good() == good


@pytest.mark.parametrize("name", images.ODD)
def test_odd_images_are_answered_as_in_training(server: Client, registry: Path, name: str):
    """40-43, 47: whatever `Predictor.predict` says, with the file's type told from its bytes."""
    reply = server.say(image(images.ODD[name], "image/jpeg"))
    assert reply.status == 200, reply.body
    alone = load_model("shades", registry=registry).predict([{"image": images.ODD[name]}])
    np.testing.assert_array_equal(np.array(reply.json["probabilities"], np.float32), alone.probabilities)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\0b.png", "a" * 500, "\u202egnp.exe", 'a"; name="other'])
def test_46_file_names_mean_nothing(server: Client, good: Any, name: str):
    reply = server.say(in_form(("file", name, png(30))))
    assert reply.status in (200, 400), reply.body
    if reply.status == 200:
        assert reply.json["probabilities"] == good[1]["probabilities"]


def test_54_a_model_that_is_loading_is_503_with_retry_after(registry: Path):
    with thread(registry, Limits()) as server:
        before = server.client.good()
        server.engine.ready.clear()
        for sent in (table(GOOD), image(png(1)), v2({"inputs": v2_inputs()})):
            reply = server.client.say(sent)
            assert (reply.status, reply.headers["retry-after"], reply.json["status"]) == (503, "1", 503)
        assert server.client.say(get("/health/live")).status == 200
        assert server.client.say(get("/health/startup")).status == 503
        server.engine.ready.set()
        assert server.client.good() == before


@pytest.mark.soak
def test_4_5_6_the_default_deadlines(server: Client, good: Any):
    """Slow headers end within 10 s, slow bodies within 30, silence within 75."""
    for sent, status, most in (
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", 408, 11),
        (table("", "Content-Length: 999"), 408, 31),
    ):
        started = time.monotonic()
        with server.connected() as connection:
            connection.settimeout(1)
            connection.sendall(sent)
            while time.monotonic() - started < most:
                connection.sendall(b"a")
                try:
                    if connection.recv(1, 2):
                        break
                except TimeoutError:
                    continue
            assert read_reply(connection).status == status
        assert time.monotonic() - started < most
        assert server.good() == good
    with server.connected() as connection:
        connection.settimeout(80)
        connection.sendall(get("/health/live"))
        assert read_reply(connection).status == 200
        assert connection.recv(10) == b""
