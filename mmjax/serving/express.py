"""Express: plain requests about rows of a table are answered together, in the round of the event loop that read them.

What a framework does around a small request (a task, objects for request and reply, routing, messages) takes several
times as long as the model. So `POST /predict/tabular` with nothing unusual about it is gathered while the event loop
reads what has arrived, then encoded, run and answered at once with all the others.

Only answers go this way. Whatever is refused, wants more than that (a deadline, one fixed bucket, a body of another
kind) or has to wait (a busy device, a larger model) starts over on the ordinary way, through `outer` and `routes`,
where every rule and every word of an error stands.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from mmjax.serving.answering import Answered, count, finite_rows
from mmjax.serving.batcher import SMALL_ROWS, Ran, run_here
from mmjax.serving.engine import Engine
from mmjax.serving.outer import ADMITTED, SHED_ROUTE, Told, Watch, answered, identify, problem_reply
from mmjax.serving.routes import INLINE_BYTES, notes_of, server_timing
from mmjax.serving.tables import Table, batch_of, read_table
from mmjax.serving.wire import encode_reply, told

PATH, METHOD = "/predict/tabular", "POST"
BEYOND = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"x-request-timeout-ms"})
"""Headers of requests that are not plain."""
JSON = b"application/json"
HEAD = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\nserver-timing: %b\r\n"
ROUND_ROWS = 32
"""Rows that are answered before the event loop looks at its sockets again: probes wait for no more."""
ROUND_REFUSALS = 4
"""Requests that are refused in a round for want of a place. The others wait, which costs nothing: who is refused at
once may ask again at once, and then the server would do little else."""
LEAST_DEADLINE_S = 1.0
"""Requests of a server with a deadline below this go the ordinary way, which watches it."""


class Held(NamedTuple):
    """A request whose app has not been started: uvicorn's cycle, and the app."""

    cycle: Any
    app: Any


class Connection(Protocol):
    """What the protocol does for a request; see `BoundedProtocol`."""

    loop: Any

    def answer(self, held: Held, status: bytes, head: bytes, body: bytes) -> bool:
        """Write a reply; False when the client has left."""
        ...

    def start(self, held: Held) -> None:
        """Start the app."""
        ...


class Call(NamedTuple):
    """A plain request."""

    connection: Connection
    held: Held
    table: Table
    caller: str | None
    """Name of the key."""
    request_id: str
    trace: tuple[str, str] | None
    arrived: float
    decoded: float
    """By `time.perf_counter`."""


class Express:
    """The plain requests of a server on their way. Of one event loop."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self._calls: deque[Call] = deque()
        self._excess: deque[tuple[Connection, Held, str | None, float]] = deque()
        """Requests for which there is no place, the name of the key of each, and when it arrived."""
        self._open = engine.deadline_s is None or engine.deadline_s >= LEAST_DEADLINE_S
        self._beyond = BEYOND | {b"x-forwarded-for"} if watch.gate.by_address else BEYOND

    def is_plain(self, scope: Any) -> bool:
        """Return whether a request with this head may go this way: then `take` is asked once its body has come."""
        if scope["path"] != PATH or scope["method"] != METHOD or scope["query_string"] or not self._open:
            return False
        for name, value in scope["headers"]:
            if name in self._beyond:
                return False
            if name == b"content-type" and value != JSON and not value.startswith(b"application/json;"):
                return False
            if name == b"content-length" and (len(value) > 6 or int(value) > INLINE_BYTES):
                return False
        return self._engine.ready.is_set() and not self._engine.draining.is_set()

    def take(self, connection: Connection, held: Held) -> bool:
        """Take a plain request, whose body has come, and return True; False where it has to go the ordinary way."""
        arrived, engine, scope = time.perf_counter(), self._engine, held.cycle.scope
        try:
            client = scope["client"]
            if engine.places.taken >= engine.places.most:
                caller = self._watch.gate.admit(PATH, scope["headers"], client[0] if client else "")
                self._begin_round(connection)
                self._excess.append((connection, held, caller, arrived))
                self._watch.inside.requests += 1
                return True
            table = read_table(engine, bytes(held.cycle.body))
            if table.deterministic or table.served.batcher is None or len(table.rows) > SMALL_ROWS:
                return False
            caller = self._watch.gate.admit(PATH, scope["headers"], client[0] if client else "")
        except Exception:  # noqa: BLE001  refusals and faults are told on the ordinary way
            return False
        engine.places.taken += 1
        self._watch.inside.requests += 1
        self._begin_round(connection)
        identity = identify(scope["headers"])
        self._calls.append(Call(connection, held, table, caller, *identity, arrived, time.perf_counter()))
        return True

    def _begin_round(self, connection: Connection) -> None:
        if not self._calls and not self._excess:
            connection.loop.call_soon(self._round, connection)

    def _round(self, connection: Connection) -> None:
        """Answer what has been gathered, or the first of it, and refuse a few for which there was no place."""
        calls, rows = [], 0
        while self._calls and rows < ROUND_ROWS:
            calls.append(self._calls.popleft())
            rows += len(calls[-1].table.rows)
        for group in _alike(calls):
            self._answer(group)
        for _ in range(min(len(self._excess), ROUND_REFUSALS)):
            self._refuse(*self._excess.popleft())
        if self._calls or self._excess:
            connection.loop.call_soon(self._round, connection)

    def _answer(self, calls: list[Call]) -> None:
        """Answer requests to one model together; each alone where that fails; and else start over."""
        left, alone = list(calls), len(calls) == 1
        with contextlib.suppress(Exception):  # refusals and faults are told on the ordinary way
            alone = not self._run(left) or alone
        for call in left:
            if alone:
                self._start(call)
            else:
                self._answer([call])

    def _run(self, calls: list[Call]) -> bool:
        """Answer requests to one model together, and take them from the list; False where they have to wait."""
        table, started = calls[0].table, time.perf_counter()
        if len(calls) > 1:
            table = table._replace(rows=[row for call in calls for row in call.table.rows])
        columns, batch = batch_of(table)
        encode_s = time.perf_counter() - started
        batcher = table.served.batcher
        if batcher is None or (ran := run_here(batcher, batch)) is None:
            return False
        if finite_rows(ran.scores) is None:
            self._send(calls, ran, started, encode_s)
            count(self._watch.metrics, table.served, columns, batch, ran.scores)
        return True

    def _send(self, calls: list[Call], ran: Ran, started: float, encode_s: float) -> None:
        """Write the reply to each request, count it, tell the log and take it from the list."""
        served, metrics, infer_s, at = calls[0].table.served, self._watch.metrics, ran.seconds, 0
        words, label = told(served.predictor.schema, ran.scores), str(served)
        metrics.stage(label, "infer", infer_s, len(calls))
        while calls:
            call, began = calls[0], time.perf_counter()
            start, at = at, at + len(call.table.rows)
            body = encode_reply(words.part(start, at), served.name, seconds=infer_s, request_id=call.request_id)
            queue_s, decode_s = started - call.decoded, call.decoded - call.arrived + encode_s
            spent = Answered(ran.scores, queue_s, decode_s, infer_s, ran.bucket)
            timing = server_timing(spent, encode_s=time.perf_counter() - began)
            head = HEAD % (len(body), call.request_id.encode(), timing.encode())
            done = call.connection.answer(call.held, b"HTTP/1.1 200 OK\r\n", head, body)
            del calls[0]
            metrics.stage(label, "queue", queue_s)
            metrics.stage(label, "decode", decode_s)
            metrics.stage(label, "encode", time.perf_counter() - began)
            self._leave()
            notes = notes_of(label, at - start, spent) if self._watch.log is not None else {}
            if call.caller is not None:
                notes["key"] = call.caller
            status, reason = (200, "ok") if done else (499, "client-left")
            what = Told(PATH, METHOD, status, reason, call.request_id, call.trace)
            answered(self._watch, what, time.perf_counter() - call.arrived, notes)

    def _start(self, call: Call) -> None:
        """Let a request go the ordinary way, from the start but for the gate."""
        self._leave()
        call.held.cycle.scope[ADMITTED] = call.caller
        call.connection.start(call.held)

    def _leave(self) -> None:
        self._engine.places.taken -= 1
        self._watch.inside.requests -= 1

    def _refuse(self, connection: Connection, held: Held, caller: str | None, arrived: float) -> None:
        """Write the refusal of a request for which there was no place, or start it where there is one now."""
        self._watch.inside.requests -= 1
        if (refused := self._watch.no_room()) is None:
            held.cycle.scope[ADMITTED] = caller
            connection.start(held)
            return
        request_id, trace = identify(held.cycle.scope["headers"])
        status, headers, body = problem_reply(refused, PATH, request_id)
        reason = refused.reason
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{lines}content-length: {len(body)}\r\nx-request-id: {request_id}\r\n".encode()
        if not connection.answer(held, b"HTTP/1.1 503 Service Unavailable\r\n", head, body):
            status, reason = 499, "client-left"
        what = Told(SHED_ROUTE, METHOD, status, reason, request_id, trace)
        answered(self._watch, what, time.perf_counter() - arrived, {})


def _alike(calls: list[Call]) -> Iterator[list[Call]]:
    """Yield the requests that go through a model together."""
    groups: dict[tuple[int, bool], list[Call]] = {}
    for call in calls:
        groups.setdefault((id(call.table.served), call.table.numbers), []).append(call)
    yield from groups.values()
