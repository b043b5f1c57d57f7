"""Any bytes at all: an answer that blames the client, or a closed connection; never a fault, nobody else harmed."""

import contextlib
import http.client
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmjax.serving.limits import Limits
from tests.bad_images import form
from tests.live import GOOD, Client, make_home, png, read_reply, request, thread

BOUNDS = Limits(header_timeout_s=0.3, body_timeout_s=0.3, unread_timeout_s=0.2)

WHOLE = (
    request("POST", "/predict/tabular", GOOD, ["Content-Type: application/json", "Connection: close"]),
    request("POST", "/predict/image", png(30), ["Content-Type: image/png", "Connection: close"]),
    request(
        "POST",
        "/predict/image",
        form(("file", "a.png", png(30))),
        ["Content-Type: multipart/form-data; boundary=line", "Connection: close"],
    ),
    request("GET", "/models/kinds?version=1", headers=["Connection: close", "traceparent: 00-ab-cd-01"]),
    request(
        "POST",
        "/predict/tabular",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        ["Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close"],
    ),
    request(
        "POST",
        "/v2/models/kinds/infer",
        json.dumps({"inputs": [{"name": "size", "shape": [1], "datatype": "FP32", "data": [1.0]}]}).encode(),
        ["Connection: close"],
    ),
)
"""Requests to spoil."""
PIECES = [
    b"\r\n",
    b"\0",
    b"\xff",
    b":",
    b" ",
    b"\r",
    b"\n\n",
    b"%",
    b'"',
    b"[",
    b"{",
    b"-1",
    b"1e999",
    b"chunked",
    b"\xc3",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with thread(make_home(tmp_path_factory.mktemp("fuzz")), BOUNDS) as server:
        yield server.client


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A request with bytes put in, taken out, doubled or turned over."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1)) if data else 0
        match draw(st.sampled_from(("put", "cut", "flip", "double", "end"))):
            case "put":
                data[place:place] = draw(st.sampled_from(PIECES))
            case "cut":
                del data[place : place + draw(st.integers(1, 20))]
            case "flip" if data:
                data[place] ^= draw(st.integers(1, 255))
            case "double":
                data[place:place] = data[place : place + 30]
            case _:
                del data[max(place, 1) :]
    return bytes(data)


def answered(server: Client, data: bytes) -> int:
    """The status that the bytes get, or 0 when the connection is closed without one."""
    with server.connected() as connection, contextlib.suppress(http.client.HTTPException, ConnectionError):
        connection.sendall(data)
        return read_reply(connection).status
    return 0


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(spoilt(), st.binary(max_size=200)))
def test_any_bytes_get_an_answer_that_is_no_fault(server: Client, data: bytes):
    status = answered(server, data)
    assert status == 0 or 200 <= status < 500, data


def test_after_all_of_it_good_requests_are_as_ever(server: Client):
    good = server.good()
    for data in WHOLE:
        assert answered(server, data) in (200, 400)
    assert server.good() == good
    assert server.counted("requests", status="500") == 0
