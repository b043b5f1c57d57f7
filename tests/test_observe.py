"""Figures, health, ids and the log, on a real socket; and the figures' own laws."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mmjax.serving import probes
from mmjax.serving.limits import Limits
from mmjax.serving.log import RequestLog
from mmjax.serving.observe import MOST_LABELS, Metrics
from tests.live import GOOD, JSON, PNG, ROW, Thread, make_home, png, request, thread


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thread]:
    with thread(make_home(tmp_path_factory.mktemp("observe")), Limits()) as server:
        yield server


# ---- figures


def test_text_and_json_tell_the_same_figures():
    metrics = Metrics()
    metrics.served("iris", 3, "abc")
    for status, reason in ((200, "ok"), (200, "ok"), (400, "bad-cell")):
        metrics.request("/predict/tabular", "POST", status, reason, 0.003)
    metrics.request("(unmatched)", "BREW", 404, "not-found", 0.001)
    metrics.stage("iris:3", "queue", 0.002)
    metrics.batch("iris:3", 3, 4)
    metrics.shed("overloaded")
    metrics.compiled("iris:3")
    metrics.cells("iris:3", 'odd "name"\n', "missing", 5)
    metrics.cells("iris:3", "a", "unknown", 0)
    metrics.predicted("iris:3", "setosa", 2)
    text, content_type = metrics.exposition("*/*")
    assert content_type.startswith("text/plain; version=0.0.4")
    read = {(s.name, *sorted(s.labels.items())): s.value for f in parse_text(text.decode()) for s in f.samples}
    told = json.loads(metrics.exposition("application/json")[0])
    same = {
        (s["name"], *sorted(s["labels"].items())): s["value"] for family in told.values() for s in family["samples"]
    }
    still = {key for key in read if not key[0].startswith("process_")}
    assert {key: read[key] for key in still} == {key: same[key] for key in still}
    assert read.keys() == same.keys()
    route = ("method", "POST"), ("reason", "ok"), ("route", "/predict/tabular"), ("status", "200")
    assert read["mmjax_requests_total", *route] == 2
    assert any(("method", "other") in key for key in read), "methods that nobody knows share a label"
    assert read["mmjax_padding_rows_total", ("model", "iris:3")] == 1
    assert read["mmjax_cells_total", ("column", 'odd "name"\n'), ("kind", "missing"), ("model", "iris:3")] == 5
    assert not any("_created" in key[0] or ("kind", "unknown") in key for key in read)
    assert read["mmjax_model_info", ("digest", "abc"), ("name", "iris"), ("version", "3")] == 1
    metrics.retired("iris", 3, "abc")
    assert b"mmjax_model_info{" not in metrics.exposition("")[0]


def test_openmetrics_is_given_to_who_asks():
    metrics = Metrics()
    metrics.request("/", "GET", 200, "ok", 0.1)
    text, content_type = metrics.exposition("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    assert "mmjax_requests" in {family.name for family in parse_openmetrics(text.decode())}


def test_many_classes_share_a_count():
    metrics = Metrics()
    for i in range(MOST_LABELS + 50):
        metrics.predicted("m", f"class {i}", 2)
    told = json.loads(metrics.exposition("application/json")[0])["mmjax_predicted"]["samples"]
    assert len(told) == MOST_LABELS + 1
    assert {s["labels"]["label"]: s["value"] for s in told}["(other)"] == 100


def test_two_servers_count_apart_and_threads_lose_nothing():
    one, other = Metrics(), Metrics()

    def work(_: int) -> None:
        for _ in range(500):
            one.request("/", "GET", 200, "ok", 0.001)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert b'mmjax_requests_total{method="GET",reason="ok",route="/",status="200"} 4000.0' in one.exposition("")[0]
    assert b"mmjax_requests_total{" not in other.exposition("")[0]


def test_the_live_figures_add_up(server: Thread):
    client = server.client
    before = client.counted("requests", route="/predict/tabular", status="200")
    compiled = client.counted("compiles")
    rows = [ROW, ROW | {"size": None}, ROW | {"colour": "mauve"}, ROW | {"colour": None}]
    reply = client.ask("POST", "/predict/tabular", json.dumps({"rows": rows}).encode(), JSON)
    assert reply.status == 200
    assert reply.json["warnings"] == ["column 'colour': 1 cell of a category unknown to the model: 'mauve' (row 3)"]
    assert client.ask("POST", "/predict/image", png(30), PNG).status == 200
    assert client.counted("requests", route="/predict/tabular", status="200", reason="ok") == before + 1
    for stage in ("queue", "decode", "infer", "encode"):
        samples = client.figures()["mmjax_stage_seconds"]["samples"]
        assert any(s["labels"].get("stage") == stage and s["labels"]["model"] == "shades:1" for s in samples)
    assert client.counted("cells", model="kinds:1", column="size", kind="missing") == 1
    assert client.counted("cells", model="kinds:1", column="colour", kind="unknown") == 1
    assert client.counted("cells", model="kinds:1", column="colour", kind="missing") == 1
    assert client.counted("predicted", model="kinds:1") >= 4
    assert client.counted("batches", model="kinds:1") >= 1
    assert client.counted("model_info") == 2
    assert client.counted("compiles") == compiled > 8, "nothing compiles in traffic"
    assert client.figures()["process_resident_memory_bytes"]["samples"][0]["value"] > 1e7


def test_metrics_come_as_text_unless_json_is_asked_for(server: Thread):
    text = server.client.ask("GET", "/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {"mmjax_requests", "mmjax_in_flight", "mmjax_model_info"} <= {f.name for f in parse_text(text.body.decode())}
    for reply in (
        server.client.ask("GET", "/metrics", headers={"accept": "application/json"}),
        server.client.ask("GET", "/metrics?format=json"),
    ):
        assert reply.headers["content-type"] == "application/json"
        assert reply.json["mmjax_requests"]["type"] == "counter"
    assert server.client.ask("GET", "/metrics?format=xml").json["error"] == "format: expected json or text, got 'xml'"


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "reason"),
    [
        ("GET", "/models/kinds", 200, "/models/{name}", "ok"),
        ("GET", "/models/none", 404, "/models/{name}", "no-such-model"),
        ("GET", "/a/b/c", 404, "(unmatched)", "not-found"),
        ("DELETE", "/models", 405, "(unmatched)", "bad-method"),
        ("POST", "/predict/tabular", 400, "/predict/tabular", "bad-json"),
    ],
)
def test_what_routing_refuses_is_counted_by_a_bounded_route(server, method, path, status, route, reason):
    labels = {"route": route, "method": method, "status": str(status), "reason": reason}
    before = server.client.counted("requests", **labels)
    assert server.client.ask(method, path, b"{" if method == "POST" else None, JSON).status == status
    assert server.client.counted("requests", **labels) == before + 1
    routes = {s["labels"]["route"] for s in server.client.figures()["mmjax_requests"]["samples"]}
    assert not any("none" in route or "/a/b" in route for route in routes)


def test_a_client_that_hangs_up_is_499_and_no_fault(server: Thread):
    before, faults = server.client.counted("requests", status="499"), server.client.counted("requests", status="500")
    with server.client.connected() as connection:
        connection.sendall(request("POST", "/predict/tabular", b"{", ["Content-Length: 100", "X-Request-ID: left"]))
    for _ in range(100):
        if server.client.counted("requests", status="499", reason="client-left") == before + 1:
            break
        time.sleep(0.02)
    assert server.client.counted("requests", status="499", reason="client-left") == before + 1
    assert server.client.counted("requests", status="500") == faults


# ---- ids and the log


def test_a_path_that_is_not_there_is_logged_short_and_escaped(server: Thread):
    ids = ("n1", "n2", "n3")
    for path, request_id in zip(("/perdict?secret=1", "/a%1b[31m" + "b" * 300, "/models/none"), ids, strict=True):
        server.client.ask("GET", path, headers={"X-Request-ID": request_id})
    found: dict[str, Any] = {}
    while "n3" not in found:
        line = json.loads(server.log.readline())
        found[line["request_id"]] = line.get("path")
    told = [found[request_id] for request_id in ids]
    assert told == ["/perdict", told[1], None]
    assert told[1].startswith("/a\\x1b[31mbbb")
    assert len(told[1]) == 200


def test_a_line_a_request_and_never_a_body(server: Thread):
    client, secret = server.client, "kept-secret"
    client.ask(
        "POST", "/predict/tabular", json.dumps({"rows": [ROW | {"colour": secret}]}), JSON | {"X-Request-ID": "a1"}
    )
    client.ask("GET", "/health")
    client.ask("GET", "/health/live")
    client.ask("GET", "/metrics")
    client.ask(
        "POST", "/predict/tabular", json.dumps({"rows": [ROW | {"size": secret}]}), JSON | {"X-Request-ID": "a2"}
    )
    found = []
    while not found or found[-1]["request_id"] != "a2":
        line = server.log.readline()
        assert secret.encode() not in line
        found.append(json.loads(line))
    first = next(line for line in found if line["request_id"] == "a1")
    assert found[found.index(first) + 1] is found[-1], "probes and /metrics are not logged"
    assert {"time", "event", "route", "method", "status", "reason", "ms", "model", "rows", "bucket"} <= first.keys()
    assert (first["status"], first["model"], first["rows"]) == (200, "kinds:1", 1)
    assert (found[-1]["status"], found[-1]["reason"]) == (400, "bad-cell")


def test_a_fault_of_ours_tells_the_client_nothing_and_the_log_all_in_one_line(server: Thread):
    served = server.engine.serving["kinds"]
    server.engine.serving["kinds"] = served._replace(predictor=served.predictor._replace(schema=None))
    try:
        reply = server.client.ask("POST", "/predict/tabular", GOOD, JSON | {"X-Request-ID": "broken"})
    finally:
        server.engine.serving["kinds"] = served
    assert (reply.status, reply.json["type"]) == (500, "urn:mmjax:fault")
    assert b"NoneType" not in reply.body
    while (line := json.loads(server.log.readline()))["request_id"] != "broken":
        pass
    assert (line["status"], line["reason"]) == (500, "fault")
    assert "AttributeError: 'NoneType' object" in line["traceback"]
    server.client.good()


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-ID": "job-7"}, "job-7"),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "job-8"}, "job-8"),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"ff-{TRACE}-00f067aa0ba902b7-01"}, None),
        ({"X-Request-ID": "a b<script>"}, None),
        ({"X-Request-ID": "x" * 129}, None),
        ({}, None),
    ],
)
def test_a_request_keeps_its_plain_id_or_that_of_its_trace(server, headers, expected):
    reply = server.client.ask("GET", "/nothing", headers=headers)
    got = reply.headers["x-request-id"]
    assert got == expected if expected else re.fullmatch("[0-9a-f]{32}", got) and got != TRACE
    assert reply.json["request_id"] == got
    while (line := json.loads(server.log.readline()))["request_id"] != got:
        pass
    assert (line.get("trace_id"), line.get("parent_id")) == (
        (TRACE, "00f067aa0ba902b7") if f"00-{TRACE}" in headers.get("traceparent", "") else (None, None)
    )


def test_a_blocked_log_blocks_nobody_and_says_so_in_the_figures(tmp_path: Path):
    import os

    reader, writer = os.pipe()
    lost = []
    log = RequestLog(writer, lost=lambda: lost.append(1))
    started = time.perf_counter()
    for i in range(30_000):
        log.tell("request", {"number": i, "filling": "x" * 100})
    assert time.perf_counter() - started < 10
    assert lost, "a pipe that nobody reads holds 64 KiB, and we hold 10,000 lines"
    os.close(reader)
    log.close()
    os.close(writer)


def test_lines_come_whole_and_in_order(tmp_path: Path):
    with (tmp_path / "log").open("wb") as file:
        log = RequestLog(file.fileno(), lost=lambda: None)
        for i in range(1000):
            log.tell("request", {"number": i, "odd": 'line\nbreak "\x1b[31m'})
        log.close()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1000))
    assert all(b"\x1b" not in line for line in lines)


# ---- health


def test_health_says_what_is(server: Thread):
    told = server.client.ask("GET", "/health").json
    assert set(told) == {"status", "timestamp", "model_loaded", "models", "system"}
    assert (told["status"], told["model_loaded"]) == ("ok", True)
    assert set(told["system"]) == {"memory", "disk", "device"}
    for probe, word in (("live", "ok"), ("ready", "ready"), ("startup", "started")):
        assert server.client.ask("GET", f"/health/{probe}").json == {"status": word}


def test_live_is_false_once_the_device_thread_is_stuck_and_true_again_after(
    server: Thread, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probes, "STUCK_S", 0.2)
    monkeypatch.setattr(probes, "BEAT_S", 0.05)
    time.sleep(1.1)  # the beat under way
    assert server.client.ask("GET", "/health/live").status == 200
    release = threading.Event()
    server.engine.device.turns.put(lambda: release.wait(20) and None)
    told = {time.sleep(0.1) or server.client.ask("GET", "/health/live").status for _ in range(6)}
    assert server.client.ask("GET", "/health/ready").status == 200
    release.set()
    assert 503 in told
    time.sleep(0.3)
    assert server.client.ask("GET", "/health/live").json == {"status": "ok"}
    server.client.good()


def test_probes_and_figures_answer_while_the_server_is_full(server: Thread):
    places = server.engine.places
    taken, places.taken = places.taken, places.most
    try:
        full = server.client.ask("POST", "/predict/tabular", GOOD, JSON)
        assert (full.status, full.json["type"]) == (503, "urn:mmjax:overloaded")
        assert server.client.counted("shed", reason="overloaded") == 1
        assert server.client.counted("requests", route="(shed)", reason="overloaded") == 1
        for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics"):
            assert server.client.ask("GET", path).status == 200
    finally:
        places.taken = taken
