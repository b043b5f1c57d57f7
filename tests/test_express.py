"""The express way: what it answers is what the ordinary way answers, and nobody is lost, mixed up or counted twice."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from mmjax.artifact.models import load_model
from mmjax.serving import express
from mmjax.serving.limits import Key, Limits
from tests.live import GOOD, JSON, ROW, Reply, Thread, make_home, read_reply, request, thread

ORDINARY = "X-Request-Timeout-Ms: 30000"
"""A header that the express way leaves to the ordinary one."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("express"))


@pytest.fixture(scope="module")
def server(registry: Path) -> Iterator[Thread]:
    with thread(registry, Limits()) as server:
        yield server


def table(document: Any, *headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return request("POST", "/predict/tabular", body, ["Content-Type: application/json", *headers])


def some_rows(seed: int, count: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    colours = ("red", "green", "blue", "mauve", None)
    return [
        {"size": round(float(rng.normal()), 4), "weight": int(rng.integers(7)), "colour": colours[rng.integers(5)]}
        for _ in range(count)
    ]


@contextlib.contextmanager
def connections(server: Thread, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.client.connected()) for _ in range(count)]


def all_at_once(server: Thread, sent: Sequence[bytes]) -> list[Reply]:
    """The replies to requests that are sent, each over a connection of its own, before any is read."""
    with connections(server, len(sent)) as clients:
        for client, data in zip(clients, sent, strict=True):
            client.sendall(data)
        return [read_reply(client) for client in clients]


def next_reply(file: BinaryIO) -> Reply:
    """The next of several replies over one connection."""
    status = int(file.readline().split()[1])
    lines = iter(lambda: file.readline().decode().strip(), "")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Reply(status, headers, file.read(int(headers["content-length"])))


def eventually(look: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not look():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.01)


@contextlib.contextmanager
def busy_device(server: Thread) -> Iterator[threading.Event]:
    """A device that is busy until the event is set."""
    started, release = threading.Event(), threading.Event()

    def turn() -> None:
        started.set()
        release.wait(30)

    server.engine.device.turns.put(turn)
    assert started.wait(10)
    try:
        yield release
    finally:
        release.set()


def told(reply: Reply) -> Any:
    return {k: v for k, v in reply.json.items() if k not in ("request_id", "inference_time_ms")}


BODIES = [
    {"rows": [ROW]},
    {"features": [[0.25, 3, "red"]], "model": "kinds", "version": 1},
    {"features": [[0.25, 3, "red"]], "model": "kinds:1"},
    {"features": [["NA", None, "mauve"], [-1e-30, 2.5, ""]]},
    {"rows": some_rows(1, 9)},
]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_both_ways_answer_count_and_log_the_same(server: Thread, body: Any):
    outcomes = []
    for headers in ((), (ORDINARY,)):
        before = _counts(server)
        reply = server.client.say(
            table(body, "X-Request-ID: mine", "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01", *headers)
        )
        after = _counts(server)
        grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        while (line := json.loads(server.log.readline()))["request_id"] != "mine":
            pass
        same = {key: line[key] for key in line if key not in ("time", "ms", "queue_ms", "infer_ms")}
        outcomes.append((reply.status, told(reply), sorted(reply.headers), grown, same, sorted(line)))
        assert reply.headers["x-request-id"] == reply.json["request_id"] == "mine"
    assert outcomes[0] == outcomes[1]


def _counts(server: Thread) -> dict[tuple[Any, ...], float]:
    """Counters by name and labels, without those that count time or the process."""
    return {
        (sample["name"], *sorted(sample["labels"].items())): sample["value"]
        for name, family in server.client.figures().items()
        for sample in family["samples"]
        if name.startswith("mmjax_") and sample["name"].endswith(("_total", "_count")) and "/metrics" not in str(sample)
    }


def test_each_of_many_at_once_gets_its_own_answer(server: Thread, registry: Path):
    """From one row to more than is answered in a round, over as many connections as there are places and more."""
    rows = [some_rows(seed, 1 + seed % 5) for seed in range(150)]
    predictor = load_model("kinds", registry=registry)
    for attempt in range(3):
        replies = all_at_once(server, [table({"rows": each}) for each in rows])
        for each, reply in zip(rows, replies, strict=True):
            if reply.status == 503:
                assert reply.json["type"] == "urn:mmjax:overloaded"
                continue
            assert reply.status == 200, reply.body
            expected = predictor.predict(each).probabilities
            np.testing.assert_allclose(np.array(reply.json["probabilities"]), expected, rtol=1e-5, atol=1e-6)
        assert sum(reply.status == 200 for reply in replies) >= 64, f"attempt {attempt}: no place is lost"
    assert server.engine.places.taken == 0


def test_each_of_many_at_once_hears_of_its_own_unknown_categories(server: Thread):
    bodies = [{"rows": [ROW] * i + [ROW | {"colour": f"hue {i}"}]} for i in range(4)] + [{"rows": [ROW]}]
    with busy_device(server):
        pass
    *told, plain = all_at_once(server, [table(body) for body in bodies])
    what = "column 'colour': 1 cell of a category unknown to the model:"
    assert [reply.json["warnings"] for reply in told] == [[f"{what} 'hue {i}' (row {i + 1})"] for i in range(4)]
    assert "warnings" not in plain.json


def test_a_poisoned_one_fails_alone(server: Thread):
    bad = {"rows": [ROW | {"size": 1e39}]}
    documents = [bad if i % 7 == 3 else {"rows": [ROW]} for i in range(40)]
    before = server.client.counted("requests", route="/predict/tabular", reason="bad-cell")
    replies = all_at_once(server, [table(document) for document in documents])
    assert [reply.status for reply in replies] == [400 if document is bad else 200 for document in documents]
    assert {json.dumps(told(reply)) for reply in replies if reply.status == 200} == {
        json.dumps(told(server.client.ask("POST", "/predict/tabular", GOOD, JSON)))
    }
    assert server.client.counted("requests", route="/predict/tabular", reason="bad-cell") == before + 6


def test_requests_in_a_row_are_answered_in_order_whichever_way_they_go(server: Thread):
    probe = request("GET", "/health/live", b"", ["X-Request-ID: probe"])
    sent = [
        table({"rows": [ROW]}, "X-Request-ID: a"),
        probe,
        table({"rows": [ROW]}, "X-Request-ID: b", ORDINARY),
        table(b"{", "X-Request-ID: c"),
        table({"rows": [ROW]}, "X-Request-ID: d"),
        request("GET", "/models", b"", ["X-Request-ID: e"]),
    ]
    with server.client.connected() as client, client.makefile("rb") as file:
        client.sendall(b"".join(sent))
        replies = [next_reply(file) for _ in sent]
        client.sendall(table({"rows": [ROW]}, "Connection: close"))
        assert next_reply(file).headers["connection"] == "close"
        assert file.read() == b""
    assert [reply.headers["x-request-id"] for reply in replies] == ["a", "probe", "b", "c", "d", "e"]
    assert [reply.status for reply in replies] == [200, 200, 200, 400, 200, 200]


def test_a_request_in_pieces_is_answered(server: Thread):
    data = table({"rows": [ROW]})
    with server.client.connected() as client:
        for at in range(0, len(data), 37):
            client.sendall(data[at : at + 37])
            time.sleep(0.002)
        assert read_reply(client).status == 200


def test_an_old_client_is_answered_and_let_go(server: Thread):
    data = table({"rows": [ROW]}).replace(b"HTTP/1.1", b"HTTP/1.0")
    with server.client.connected() as client:
        client.sendall(data)
        reply = read_reply(client)
        assert (reply.status, reply.headers["connection"]) == (200, "close")


def test_who_waits_for_a_busy_device_is_answered_and_who_leaves_frees_the_place(server: Thread):
    before = server.client.counted("requests", route="/predict/tabular", reason="client-left")
    with busy_device(server) as release, connections(server, 12) as clients:
        for client in clients:
            client.sendall(table({"rows": [ROW]}))
        eventually(lambda: server.engine.places.taken == 12)
        assert server.client.counted("waiting") == 12
        for client in clients[::3]:
            client.close()
        eventually(lambda: server.engine.places.taken == 8)
        began = time.monotonic()
        assert server.client.ask("GET", "/health/live").status == 200
        assert time.monotonic() - began < 1
        release.set()
        assert {read_reply(client).status for i, client in enumerate(clients) if i % 3} == {200}
    eventually(lambda: server.engine.places.taken == 0)
    assert server.client.counted("requests", route="/predict/tabular", reason="client-left") == before + 4
    assert server.client.counted("in_flight") == 1


def test_who_finds_no_place_is_refused_in_turn_or_answered_once_there_is_one(server: Thread):
    places = server.engine.places
    shed = server.client.counted("shed", reason="overloaded")
    places.taken += places.most
    try:
        with connections(server, 90) as clients:
            for client in clients:
                client.sendall(table({"rows": [ROW]}))
            first = read_reply(clients[-1])
            assert (first.status, first.json["type"]) == (503, "urn:mmjax:overloaded")
            assert int(first.headers["retry-after"]) >= 1
            assert server.client.ask("GET", "/health/ready").status == 200
            places.taken -= places.most
            statuses = [read_reply(client).status for client in clients[:-1]]
    finally:
        places.taken = 0
    assert set(statuses) == {200, 503}, "refused a few at a time; the others are answered once there is room"
    assert server.client.counted("shed", reason="overloaded") == shed + 1 + statuses.count(503)
    server.client.good()


def test_the_deadline_of_the_server_holds_while_the_device_is_busy(registry: Path):
    with thread(registry, Limits(), deadline_s=0.3) as server, busy_device(server) as release:
        began = time.monotonic()
        with connections(server, 3) as clients:
            for client in clients:  # one waits for the device, those behind it in line
                client.sendall(table({"rows": [ROW]}))
                time.sleep(0.02)
            first = read_reply(clients[0])
            assert 0.2 < time.monotonic() - began < 5
            time.sleep(0.1)
            release.set()
            replies = [first, *map(read_reply, clients[1:])]
        assert [(reply.status, reply.json["type"]) for reply in replies] == [(504, "urn:mmjax:deadline")] * 3
        server.client.good()


def test_a_request_spends_one_token_whichever_way_it_goes(registry: Path):
    with thread(registry, Limits(rate=0.001, burst=5)) as server:
        sent = [
            table({"rows": [ROW]}),
            table({"rows": [ROW | {"size": 1e39}]}),
            table({"rows": [ROW]}, ORDINARY),
            table({"rows": [ROW]}, "X-Forwarded-For: 10.0.0.1"),
            table({"rows": [ROW], "deterministic": True}),
            table({"rows": [ROW]}),
        ]
        statuses = [server.client.say(data).status for data in sent]
        assert statuses == [200, 400, 200, 200, 200, 200], "another address has a bucket of its own"
        assert server.client.say(table({"rows": [ROW]})).status == 429


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/health/startup", "/v2/health/live", "/v2/health/ready"]
)
def test_a_probe_is_answered_alike_whatever_comes_with_it(server: Thread, path: str):
    plain = server.client.say(request("GET", path))
    laden = server.client.say(request("GET", path, b"", [f"X-Some-{i}: 1" for i in range(30)]))
    assert (plain.status, plain.json) == (laden.status, laden.json)
    assert sorted(plain.headers) == sorted(laden.headers)
    assert server.client.say(request("POST", path)).status == 405
    with server.client.connected() as client:
        client.sendall(request("GET", path, b"a body"))
        assert read_reply(client).status == 200


BAD_CHUNK = table(b"", "Transfer-Encoding: chunked", "X-Request-ID: B") + b"xyz\r\n"


def test_a_broken_request_behind_another_takes_nothing_from_it_or_from_others(server: Thread):
    good = table({"rows": [ROW]}, "X-Request-ID: A")
    for _ in range(3):
        with connections(server, 12) as clients:
            for i, client in enumerate(clients):
                client.sendall(good + BAD_CHUNK if i % 4 == 1 else good)
            replies = [read_reply(client) for client in clients]
        assert [(reply.status, reply.headers["x-request-id"]) for reply in replies] == [(200, "A")] * 12
    assert server.client.counted("in_flight") == 1
    assert server.engine.places.taken == 0


def test_a_broken_request_behind_one_that_waits_leaks_no_place(registry: Path):
    with thread(registry, Limits(), deadline_s=0.3) as server:
        with busy_device(server) as release, connections(server, 4) as clients:
            for client in clients:
                client.sendall(table({"rows": [ROW]}, "X-Request-ID: A") + BAD_CHUNK)
            assert [read_reply(client).status for client in clients] == [504] * 4
            release.set()
        eventually(lambda: server.engine.places.taken == 0)
        assert server.client.counted("in_flight") == 1
        server.client.good()


def test_an_idle_connection_stays_after_a_probe(registry: Path):
    with (
        thread(registry, Limits(header_timeout_s=0.3)) as server,
        server.client.connected() as client,
        client.makefile("rb") as file,
    ):
        for path in ("/health/live", "/health/ready"):
            client.sendall(request("GET", path))
            assert next_reply(file).status == 200
            time.sleep(0.8)
        client.sendall(table({"rows": [ROW]}))
        assert next_reply(file).status == 200


@pytest.mark.parametrize("header", ["Expect: 100-continue", "Upgrade: h2c"])
def test_a_probe_that_is_not_plain_goes_the_ordinary_way(server: Thread, header: str):
    with server.client.connected() as client:
        client.sendall(request("GET", "/health/live", b"", [header, "Content-Length: 5", "Connection: Upgrade"]))
        assert read_reply(client).status == 200


def test_without_a_key_a_large_body_is_not_read(registry: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[bytes] = []
    monkeypatch.setattr(express, "read_table", lambda engine, body: read.append(body))
    with thread(registry, Limits(keys=(Key("app", bytes(32)),))) as server:
        assert server.client.say(table({"rows": some_rows(0, 30)})).status == 401
    assert read == []
