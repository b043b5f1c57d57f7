"""Keys, rates and the bounds of the protocol: by themselves, and on a real socket."""

import contextlib
import hashlib
import http.client
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mmjax.errors import ConfigError
from mmjax.serving import limits as limits_module
from mmjax.serving.limits import (
    Gate,
    Key,
    Limits,
    connections_allowed,
    holder,
    is_open,
    load_keys,
    new_key,
    open_to_others,
)
from mmjax.serving.protocol import changed, make_protocol
from mmjax.serving.wire import Refused
from tests.live import GOOD, JSON, Client, Thread, make_home, read_reply, request, thread

FIRST, SECOND = "first-key-0123456789abcdef", "second-key-0123456789abcdef"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# ---- keys


def test_keys_come_from_a_file_and_the_environment_and_are_kept_hashed(tmp_path: Path):
    (tmp_path / "keys").write_text(f"# who may ask\napp:sha256:{sha(FIRST)}\n\napp:sha256:{sha(SECOND)}\n")
    keys = load_keys(tmp_path / "keys", {"MMJAX_API_KEYS": f"ops:{FIRST}x, ci:sha256:{sha('c')}"})
    assert [key.name for key in keys] == ["app", "app", "ops", "ci"]
    assert FIRST not in repr(keys)
    assert load_keys(None, {}) == ()
    key, line = new_key("new")
    assert holder((Key("new", bytes.fromhex(line.split(":")[2])),), [(b"x-api-key", key.encode())]) == "new"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"app:{FIRST}", "line 1: expected sha256: and 64 lowercase hex digits"),
        (f"a b:sha256:{sha('x')}", "line 1: expected NAME:sha256:HEX with a name"),
        ("app:sha256:123", "line 1: expected sha256: and 64"),
        (f"ok:sha256:{sha('x')}\n{FIRST}", "line 2: expected NAME:sha256:HEX"),
        ("# nothing\n", "expected at least one line NAME:sha256:HEX, got none"),
    ],
)
def test_a_bad_file_of_keys_is_refused_without_telling_them(tmp_path: Path, text: str, told: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_keys(tmp_path / "keys", {})
    assert told in str(refused.value)
    assert FIRST not in str(refused.value)


def test_a_short_key_and_an_absent_file_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"MMJAX_API_KEYS, entry 1: expected a key of at least 24 ASCII characters"):
        load_keys(None, {"MMJAX_API_KEYS": "a:short"})
    with pytest.raises(ConfigError, match="expected a readable text file"):
        load_keys(tmp_path / "none", {})


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    compared = []
    real = limits_module.hmac.compare_digest
    monkeypatch.setattr(limits_module.hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    keys = tuple(Key(name, hashlib.sha256(name.encode()).digest()) for name in ("a", "b", "c"))
    assert holder(keys, [(b"authorization", b"Bearer a")]) == "a"
    assert holder(keys, [(b"authorization", b"bearer  c")]) == "c"
    assert len(compared) == 6
    for headers in ([], [(b"authorization", b"Basic a")], [(b"x-api-key", b"A")], [(b"x-api-key", b"")]):
        with pytest.raises(Refused) as refused:
            holder(keys, headers)
        assert (refused.value.status, refused.value.reason) == (401, "unauthorized")
    assert len(compared) == 18


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("127.9.9.9", False)]
    + [(host, True) for host in ("0.0.0.0", "::", "192.0.2.1", "example.org")],
)
def test_a_server_without_keys_that_others_can_reach_is_warned_about(host: str, warned: bool):
    assert (open_to_others(host, Limits()) is not None) == warned
    assert open_to_others(host, Limits(keys=(Key("a", b""),))) is None


@pytest.mark.parametrize(
    "path", ["/", "/health", "/health/live", "/health/ready", "/v2/health/live", "/pages/a.js", "/docs"]
)
def test_probes_and_the_page_are_open(path: str):
    assert is_open(path)


@pytest.mark.parametrize(
    "path",
    ["/predict/tabular", "/models", "/metrics", "/v2", "//", "/health/../metrics", "/pages/../metrics", "/healthy"],
)
def test_all_else_is_not(path: str):
    assert not is_open(path)


# ---- rates


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0.1, 100), burst=st.integers(1, 20), waits=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_a_bucket_never_lets_more_through_than_rate_and_burst(rate: float, burst: int, waits: list[float]):
    now = [0.0]
    gate = Gate(Limits(rate=rate, burst=burst), clock=lambda: now[0])
    admitted = 0
    for wait in waits:
        now[0] += wait
        try:
            gate.admit("/models", (), "a")
            admitted += 1
        except Refused as refused:
            now[0] += refused.retry_after_s + 1e-6
            gate.admit("/models", (), "a")  # the promise is kept
            admitted += 1
        assert admitted <= burst + rate * now[0] + 1e-6


def test_callers_have_buckets_of_their_own_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits_module, "MOST_CALLERS", 10)
    gate = Gate(Limits(rate=1, burst=1), clock=lambda: 0.0)
    for i in range(50):
        gate.admit("/models", (), f"address {i}")
    assert len(gate._buckets) == 10
    with pytest.raises(Refused):
        gate.admit("/models", (), "address 49")
    gate.admit("/health/live", (), "address 49")


# ---- on a socket


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def guarded(registry: Path) -> Iterator[Thread]:
    keys = load_keys(None, {"MMJAX_API_KEYS": f"app:{FIRST} app:{SECOND}"})
    with thread(registry, Limits(keys=keys, rate=0.5, burst=4)) as server:
        yield server


def test_keys_open_the_door_both_of_a_holder_and_the_fifth_at_once_waits(guarded: Thread):
    client = guarded.client
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer"}):
        closed = client.ask("POST", "/predict/tabular", GOOD, JSON | headers)
        assert (closed.status, closed.json["type"]) == (401, "urn:mmjax:unauthorized")
        assert closed.headers["www-authenticate"] == "Bearer"
    assert client.ask("GET", "/v2", headers={}).headers["content-type"] == "application/json"
    assert client.ask("GET", "/metrics").status == 401
    assert client.ask("GET", "/nothing").status == 401, "who has no key does not hear what there is"
    for header in ({"X-API-Key": FIRST}, {"Authorization": f"Bearer {SECOND}"}) * 2:
        assert client.ask("POST", "/predict/tabular", GOOD, JSON | header).status == 200
    waits = client.ask("POST", "/predict/tabular", GOOD, JSON | {"X-API-Key": FIRST})
    assert (waits.status, waits.json["type"], waits.headers["retry-after"]) == (429, "urn:mmjax:rate", "2")
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/v2/health/live", "/"):
        assert client.ask("GET", path).status == 200
    lines = guarded.lines(10)
    assert [line.get("key") for line in lines if line["status"] == 200][:4] == ["app"] * 4
    assert guarded.engine.metrics.exposition("")[0].count(b'mmjax_shed_total{reason="rate"} 1.0') == 1


@pytest.fixture(scope="module")
def hasty(registry: Path) -> Iterator[Client]:
    bounds = Limits(header_timeout_s=0.6, body_timeout_s=0.9, unread_timeout_s=0.5)
    with thread(registry, bounds) as server:
        yield server.client


def dribble(connection: socket.socket, data: bytes, every_s: float = 0.05) -> float:
    """Seconds until the server stops to listen to a client that sends a byte at a time."""
    started = time.perf_counter()
    for i in range(len(data)):
        try:
            connection.sendall(data[i : i + 1])
        except OSError:
            break
        time.sleep(every_s)
        connection.setblocking(False)
        try:
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except BlockingIOError:
            pass
        finally:
            connection.settimeout(20)
    return time.perf_counter() - started


def test_slow_headers_are_408_in_time_however_steadily_they_come(hasty: Client):
    with hasty.connected() as connection:
        took = dribble(connection, request("GET", "/health", headers=[f"X-{i}: 1" for i in range(50)]))
        reply = read_reply(connection)
        assert connection.recv(100) == b""
    assert (reply.status, reply.json["type"]) == (408, "urn:mmjax:slow-headers")
    assert reply.json["error"] == "headers: expected all of them within 0.6 s"
    assert 0.5 < took < 3
    assert hasty.counted("requests", status="408", reason="slow-headers", route="(unparsed)") == 1
    hasty.good()


@pytest.mark.parametrize("path", ["/predict/tabular", "/predict/image"])
def test_slow_bodies_are_408_in_time_however_steadily_they_come(hasty: Client, path: str):
    before = hasty.counted("requests", status="408", reason="slow-body", route=path)
    with hasty.connected() as connection:
        kind = "image/png" if path.endswith("image") else "application/json"
        connection.sendall(request("POST", path, headers=["Content-Length: 1000", f"Content-Type: {kind}"]))
        took = dribble(connection, b" " * 1000)
        reply = read_reply(connection)
        assert connection.recv(100) == b""
    assert (reply.status, reply.json["type"]) == (408, "urn:mmjax:slow-body")
    assert 0.8 < took < 3
    assert hasty.counted("requests", status="408", reason="slow-body", route=path) == before + 1
    assert hasty.counted("requests", status="499") == 0
    hasty.good()


def test_silence_is_closed_and_an_answered_body_is_not_waited_for(hasty: Client):
    started = time.perf_counter()
    with hasty.connected() as connection:
        assert connection.recv(10) == b""
    with hasty.connected() as connection:
        connection.sendall(b"\r\n")
        assert connection.recv(10) == b""
    with hasty.connected() as connection:
        connection.sendall(request("GET", "/nothing", headers=["Content-Length: 1000"]))
        assert read_reply(connection).status == 404
        assert connection.recv(10) == b""
    assert time.perf_counter() - started < 6


def test_a_patient_connection_lives_on_between_requests(hasty: Client):
    """Deadlines run within a request, not between two."""
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port, timeout=20)
    try:
        for _ in range(3):
            connection.request("POST", "/predict/tabular", GOOD, JSON)
            reply = connection.getresponse()
            assert reply.status == 200
            assert reply.read()
            ours = connection.sock.getsockname()
            time.sleep(0.8)
        assert connection.sock.getsockname() == ours
    finally:
        connection.close()


def test_who_only_holds_connections_gives_way_to_who_asks(registry: Path):
    """Half-sent headers, half-sent bodies and silence, more of them than there is room."""
    with thread(registry, Limits(max_connections=8)) as server, contextlib.ExitStack() as held:
        before = server.client.good()
        half = (b"GET /health HT", request("POST", "/predict/tabular", headers=["Content-Length: 99"]), b"")
        for i in range(40):
            connection = held.enter_context(server.client.connected())
            connection.sendall(half[i % 3])
            if i % 10 == 9:
                assert server.client.ask("GET", "/health/live").status == 200
        assert server.client.good() == before
        gone = server.client.counted("requests", status="503", reason="many-connections")
        assert 10 <= gone <= 60
        assert server.client.counted("requests", status="499") == 0


def test_files_leave_room_for_connections():
    assert connections_allowed() > 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > connections_allowed()


# ---- uvicorn


def test_uvicorn_is_as_the_protocol_expects():
    """When this fails, uvicorn has changed within: read serving/protocol.py against it before the range is widened."""
    assert changed() == []


def test_a_changed_uvicorn_is_seen(monkeypatch: pytest.MonkeyPatch):
    class Other(HttpToolsProtocol):
        def __init__(self, config, server_state, app_state, _loop=None):
            self.parser = self.transport = self.loop = self.flow = self.cycle = self.headers = None
            self.connections = self.server_state = self.pipeline = self.timeout_keep_alive_task = set()

        def on_body(self, body, more):
            pass

    assert changed(Other) == [
        "uvicorn: expected HttpToolsProtocol.on_body('body',), got ('body', 'more'); see serving/protocol.py",
        "uvicorn: expected Other.scope, got none; see serving/protocol.py",
    ]
    monkeypatch.delattr(HttpToolsProtocol, "_unset_keepalive_if_required")
    with pytest.raises(ConfigError, match=r"expected HttpToolsProtocol\._unset_keepalive_if_required\(\), got None"):
        make_protocol(Limits(), refused=lambda *_: None)
    assert RequestResponseCycle.__init__
