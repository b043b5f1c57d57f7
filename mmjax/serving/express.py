"""Express: plain requests about rows of a table are answered together, in the round of the event loop that read them.

What a framework does around a small request (a task, objects for request and reply, routing, messages) takes several
times as long as the model. So `POST /predict/tabular` with nothing unusual about it is gathered while the event loop
reads what has arrived, then encoded, run and answered at once with all the others.

Where the device is busy or the model is large, they wait in the batcher's queue like all others. Only answers go this
way: what is refused, fails or wants more (a deadline of its own, one fixed bucket, a body of another kind) starts over
on the ordinary way, through `outer` and `routes`, where every rule and every word of an error stands.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from mmjax.data.pipeline import batch_rows, take
from mmjax.data.unknown import Unknown, unknown_warnings
from mmjax.schema import Batch, Columns
from mmjax.serving.answering import CLIENT_LEFT, Answered, count, finite_rows, unknown_in
from mmjax.serving.batcher import SMALL_ROWS, Batcher, Job, Ran, is_quick, late, leave, run_here, submit
from mmjax.serving.engine import Engine, overloaded, waiting
from mmjax.serving.observe import RECEIVED
from mmjax.serving.outer import ADMITTED, SHED_ROUTE, Report, Watch, answered, identify, problem_reply
from mmjax.serving.probes import PROBES
from mmjax.serving.routes import INLINE_BYTES, notes_of, server_timing
from mmjax.serving.tables import Table, batch_of, read_table
from mmjax.serving.wire import Refused, encode_json, encode_reply, words_of
from mmjax.training.scoring import Scores

PATH, METHOD = "/predict/tabular", "POST"
PROBE_HEADERS = 16
"""Headers of a probe at most."""
GONE = (CLIENT_LEFT, "client-left")
BEYOND = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"x-request-timeout-ms"})
"""Headers of requests that are not plain."""
JSON = b"application/json"
HEAD = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
TIMING = b"server-timing: %b\r\n"
ROUND_ROWS = 32
"""Rows that are answered before the event loop looks at its sockets again: probes wait for no more."""
ROUND_REFUSALS = 2
"""Requests that are refused in a round for want of a place. The others wait, which costs nothing: who is refused at
once may ask again at once, and then the server would do little else."""
WAITING_ROWS = 256
"""Rows that wait for a busy device at a time."""
REFUSED_EVERY_S = 0.002
"""Time between such refusals while nothing can be answered."""
CROWD = b"POST /predict/tabular HTTP/"
"""How requests begin that are not even parsed while many wait, so that probes do not wait for them."""


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

    def go_on(self) -> None:
        """Parse what has come."""
        ...


class Call(NamedTuple):
    """A plain request."""

    connection: Connection
    held: Held
    table: Table | None
    """What is asked; None of a request that is refused for want of a place."""
    caller: str | None
    """Name of the key."""
    request_id: str
    trace: tuple[str, str] | None
    arrived: float
    decoded: float
    """By `time.monotonic`."""


class Express:
    """The plain requests of a server on their way. Of one event loop."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self._calls: deque[Call] = deque()
        self._crowd: dict[Connection, None] = {}
        """Connections whose request has not been parsed."""
        self._refusing = False
        self._queued: dict[Connection, tuple[Batcher, Job]] = {}
        """Requests that wait for the device."""
        self._planned = False
        """Whether a round is to come."""
        self._quick = 0
        """Requests to quick models that wait for the device: until it has taken them, no more are sent after them."""
        self._beyond = BEYOND | {b"x-forwarded-for"} if watch.gate.by_address else BEYOND
        watch.metrics.watch("waiting", lambda: len(self._calls) + len(self._crowd) + waiting(engine))

    def is_plain(self, scope: Any) -> bool:
        """Return whether a request with this head may go this way: then `take` is asked once its body has come."""
        if scope["method"] == "GET":
            if scope["path"] not in PROBES or scope["query_string"] or len(scope["headers"]) > PROBE_HEADERS:
                return False
            return not any(name in BEYOND or name == b"content-length" for name, _ in scope["headers"])
        if scope["path"] != PATH or scope["method"] != METHOD or scope["query_string"]:
            return False
        for name, value in scope["headers"]:
            if name in self._beyond:
                return False
            if name == b"content-type" and value != JSON and not value.startswith(b"application/json;"):
                return False
            if name == b"content-length" and (len(value) > 6 or int(value) > INLINE_BYTES):
                return False
        return self._engine.ready.is_set() and not self._engine.draining.is_set()

    def keeps(self, connection: Connection, data: bytes) -> bool:
        """Return whether a request that begins like this has to wait before it is parsed: then `go_on` is called."""
        places = self._engine.places
        first = not self._crowd and len(self._calls) < ROUND_ROWS and places.taken < places.most
        if first or not data.startswith(CROWD):
            return False
        self._crowd[connection] = None
        self._plan_round(connection.loop)
        return True

    def take(self, connection: Connection, held: Held) -> bool:
        """Take a plain request, whose body has come, and return True; False where it has to go the ordinary way."""
        scope, places = held.cycle.scope, self._engine.places
        arrived = scope.get(RECEIVED) or time.monotonic()
        if scope["method"] == "GET":
            self._probe(connection, held, arrived)
            return True
        try:
            table, client = None, scope["client"]
            caller = self._watch.gate.admit(PATH, scope["headers"], client[0] if client else "")
            scope[ADMITTED] = caller
            if not self._refusing and places.taken < places.most:
                table = read_table(self._engine, bytes(held.cycle.body))
                if table.deterministic or table.served.batcher is None or len(table.rows) > SMALL_ROWS:
                    return False
        except Exception:  # noqa: BLE001  refusals and faults are told on the ordinary way
            return False
        call = Call(connection, held, table, caller, *identify(scope["headers"]), arrived, time.monotonic())
        self._watch.inside.requests += 1
        if table is None:
            self._refuse(call, overloaded(self._engine))
        else:
            places.taken += 1
            self._calls.append(call)
            self._plan_round(connection.loop)
        return True

    def _probe(self, connection: Connection, held: Held, arrived: float) -> None:
        """Answer a probe, at once."""
        scope = held.cycle.scope
        (status, document), path = PROBES[scope["path"]](self._engine, self._watch.pulse), scope["path"]
        body, (request_id, trace) = encode_json(document), identify(scope["headers"])
        done = connection.answer(held, _status_line(status), HEAD % (len(body), request_id.encode()), body)
        outcome = (status, "ok" if status == HTTPStatus.OK else str(int(status))) if done else GONE
        what = Report(path, "GET", *outcome, request_id, trace)
        answered(self._watch, what, time.monotonic() - arrived, {}, quiet=True)

    def gone(self, connection: Connection) -> None:
        """Free the place of a request that waits, as its client has left."""
        if (found := self._queued.get(connection)) is not None:
            leave(*found, Refused(CLIENT_LEFT, "client-left", "the client hung up before it was answered"))
        for call in [call for call in self._calls if call.connection is connection]:
            self._calls.remove(call)
            self._finish(call, PATH, GONE, {})

    def forget(self, connection: Connection) -> None:
        """Let nobody parse the request of a connection later: it ends, and does so now."""
        self._crowd.pop(connection, None)

    def _plan_round(self, loop: Any) -> None:
        if self._planned or not (self._calls or self._crowd):
            return
        places = self._engine.places
        if not self._quick and (self._calls or places.taken < places.most):
            loop.call_soon(self._round, loop)
        elif self._crowd:
            loop.call_later(REFUSED_EVERY_S, self._round, loop)
        else:
            return  # until `_done`
        self._planned = True

    def _round(self, loop: Any) -> None:
        """Answer what has been gathered, or the first of it, and refuse a few for which there is no place."""
        self._planned = False
        try:
            self._answer_some()
            self._refuse_some()
        finally:
            self._plan_round(loop)

    def _answer_some(self) -> None:
        rows, most = 0, 0 if self._quick else ROUND_ROWS
        while rows < most:
            self._let_in()
            calls = [self._calls.popleft() for _ in range(min(len(self._calls), ROUND_ROWS))]
            if not calls:
                break
            rows += sum(len(call.table.rows) for call in calls if call.table)
            for group in _alike(self._in_time(calls)):
                self._answer(group)
            if self._quick:  # the device is busy: as many as it takes at once wait for it
                most = WAITING_ROWS

    def _refuse_some(self) -> None:
        places, self._refusing = self._engine.places, True
        try:
            for _ in range(min(len(self._crowd) + places.taken - places.most, len(self._crowd), ROUND_REFUSALS)):
                connection, _ = self._crowd.popitem()
                connection.go_on()
        finally:
            self._refusing = False

    def _in_time(self, calls: list[Call]) -> list[Call]:
        """Return the requests whose deadline is to come; the others are refused."""
        if self._engine.deadline_s is None:
            return calls
        least = time.monotonic() - self._engine.deadline_s
        for call in calls:
            if call.arrived < least:
                self._refuse(call, late())
        return [call for call in calls if call.arrived >= least]

    def _let_in(self) -> None:
        """Parse the first of those that wait for it, as many as a round answers."""
        places = self._engine.places
        for _ in range(ROUND_ROWS):  # also of those that do not become a call
            if not self._crowd or len(self._calls) >= ROUND_ROWS or places.taken >= places.most:
                return
            connection = next(iter(self._crowd))
            del self._crowd[connection]
            connection.go_on()

    def _answer(self, calls: list[tuple[Call, Table]]) -> None:
        """Answer requests to one model together; each alone where that fails; and else start over."""
        left, alone = list(calls), len(calls) == 1
        with contextlib.suppress(Exception):  # refusals and faults are told on the ordinary way
            self._together(left)
        for found in left:
            if alone:
                self._start(found[0])
            else:
                self._answer([found])

    def _together(self, calls: list[tuple[Call, Table]]) -> None:
        """Answer requests to one model together, or let them wait for the device; those done leave the list."""
        table, started = calls[0][1], time.monotonic()
        served, batcher = table.served, table.served.batcher
        if len(calls) > 1:
            table = table._replace(rows=[row for _, table in calls for row in table.rows])
        columns, batch = batch_of(table)
        encode_s = time.monotonic() - started
        if batcher is None:
            return
        if (ran := run_here(batcher, batch)) is None:
            self._wait(calls, batcher, columns, batch)
        elif finite_rows(ran.scores) is None:
            unknown = unknown_in(served, columns, batch)
            self._send(calls, ran, started, encode_s, unknown)
            count(self._watch.metrics, served, columns, batch, ran.scores, unknown)

    def _wait(self, calls: list[tuple[Call, Table]], batcher: Batcher, columns: Columns | None, batch: Batch) -> None:
        """Let each request wait in the batcher's queue."""
        stop, quick = 0, is_quick(batcher, batch_rows(batch))
        while calls:
            call, table = calls[0]
            start, stop = stop, stop + len(table.rows)
            rows = take(batch, slice(start, stop))
            cells = columns and {name: values[start:stop] for name, values in columns.items()}
            deadline_s = self._engine.deadline_s
            job = submit(batcher, rows, deadline=None if deadline_s is None else call.arrived + deadline_s)
            del calls[0]
            self._queued[call.connection] = batcher, job
            self._quick += quick
            job.result.add_done_callback(partial(self._done, call, table, job, cells, quick))

    def _done(
        self, call: Call, table: Table, job: Job, columns: Columns | None, quick: bool, result: asyncio.Future[Scores]
    ) -> None:
        """Answer a request that has waited."""
        self._queued.pop(call.connection, None)
        self._quick -= quick
        self._plan_round(call.connection.loop)
        error, left = result.exception(), [(call, table)]
        if isinstance(error, Refused):
            self._refuse(call, error)
            return
        with contextlib.suppress(Exception):  # refusals and faults are told on the ordinary way
            if error is None and finite_rows(result.result()) is None:
                unknown = unknown_in(table.served, columns, job.batch)
                self._send(left, Ran(result.result(), job.infer_s, job.bucket), job.started, 0.0, unknown)
                count(self._watch.metrics, table.served, columns, job.batch, result.result(), unknown)
        if left:
            self._start(call)

    def _send(
        self,
        calls: list[tuple[Call, Table]],
        ran: Ran,
        started: float,
        encode_s: float,
        unknown: Sequence[Unknown],
    ) -> None:
        """Write the reply to each request, count it, tell the log and take it from the list.

        `unknown` are the cells of a category that training did not see, in the rows of all requests together.
        """
        served, metrics, infer_s, at = calls[0][1].served, self._watch.metrics, ran.seconds, 0
        words, label = words_of(served.predictor, ran.scores), str(served)
        metrics.stage(label, "infer", infer_s, len(calls))
        while calls:
            (call, table), began = calls[0], time.monotonic()
            start, at = at, at + len(table.rows)
            told = unknown_warnings([cell for cell in unknown if start <= cell.row < at], first=start)
            rows, request_id = words.part(start, at), call.request_id
            body = encode_reply(rows, served.name, seconds=infer_s, request_id=request_id, warnings=told)
            queue_s, decode_s = max(started - call.decoded, 0.0), call.decoded - call.arrived + encode_s
            spent = Answered(ran.scores, queue_s, decode_s, infer_s, ran.bucket)
            timing = server_timing(spent, encode_s=time.monotonic() - began)
            head = HEAD % (len(body), call.request_id.encode()) + TIMING % timing.encode()
            done = call.connection.answer(call.held, _status_line(200), head, body)
            del calls[0]
            metrics.stage(label, "queue", queue_s)
            metrics.stage(label, "decode", decode_s)
            metrics.stage(label, "encode", time.monotonic() - began)
            notes = notes_of(label, at - start, spent) if self._watch.log is not None else {}
            self._finish(call, PATH, (200, "ok") if done else GONE, notes)

    def _refuse(self, call: Call, refused: Refused) -> None:
        """Write the refusal of a request for which there was no place, or no time."""
        status, headers, body = problem_reply(refused, PATH, call.request_id)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{lines}content-length: {len(body)}\r\nx-request-id: {call.request_id}\r\n".encode()
        done = status != CLIENT_LEFT and call.connection.answer(call.held, _status_line(status), head, body)
        self._finish(call, SHED_ROUTE if call.table is None else PATH, (status, refused.reason) if done else GONE, {})

    def _start(self, call: Call) -> None:
        """Let a request go the ordinary way, from the start but for the gate."""
        self._leave(call)
        call.held.cycle.scope[RECEIVED] = call.arrived
        call.connection.start(call.held)

    def _finish(self, call: Call, route: str, outcome: tuple[int, str], notes: dict[str, Any]) -> None:
        """Count a request that is answered, and tell the log."""
        self._leave(call)
        if call.caller is not None:
            notes["key"] = call.caller
        what = Report(route, METHOD, *outcome, call.request_id, call.trace)
        answered(self._watch, what, time.monotonic() - call.arrived, notes)

    def _leave(self, call: Call) -> None:
        self._watch.inside.requests -= 1
        if call.table is not None:
            self._engine.places.taken -= 1


@cache
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


def _alike(calls: list[Call]) -> Iterator[list[tuple[Call, Table]]]:
    """Yield the requests that go through a model together, each with what it asks."""
    groups: dict[tuple[int, bool], list[tuple[Call, Table]]] = {}
    for call in calls:
        if call.table is not None:
            groups.setdefault((id(call.table.served), call.table.numbers), []).append((call, call.table))
    yield from groups.values()
