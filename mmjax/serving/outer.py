"""What stands around the routes: the id of a request, the gate, a count and a line of the log for each reply.

Outside of routing, so that paths and methods that are not there are counted too. Nothing here sees a body.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from mmjax.analysis.tables import printable
from mmjax.serving.engine import Engine, no_room
from mmjax.serving.limits import Gate, Limits
from mmjax.serving.log import RequestLog
from mmjax.serving.observe import NOTES, RECEIVED, REFUSAL, Metrics
from mmjax.serving.probes import Pulse
from mmjax.serving.routes import REQUEST_ID
from mmjax.serving.wire import Refused, encode_problem

ADMITTED = "mmjax_admitted"
"""Where the scope keeps the name of the caller's key, or None, when the gate has let the request in already."""
UNLIMITED = Limits()
"""No keys and no rate."""
UNMATCHED = "(unmatched)"
"""The route of paths that are not there."""
MOST_PATH = 200
"""Characters that the log has of a path that is not there."""
SHED_ROUTE = "(shed)"
"""The route of requests that are turned away before it is known."""
SHED = frozenset({429, 503, 504})
"""Statuses of requests that are turned away for load."""
UNPARSED = "(unparsed)"
"""The route of requests that are none."""
QUIET = ("/health", "/metrics", "/v2/health")
"""Begins of paths that are counted but not logged."""
WORK = ("/predict", "/v2/models/")
"""Begins of paths that are answered by a model."""
PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""What an `X-Request-ID` may look like to be taken over."""
TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
"""A W3C traceparent: trace id and the id of the caller's span."""


class Inside:
    """How many requests are in the server. Only the event loop touches it."""

    __slots__ = ("requests",)

    def __init__(self) -> None:
        self.requests = 0


class Watch(NamedTuple):
    """What looks at every request."""

    metrics: Metrics
    gate: Gate
    log: RequestLog | None
    no_room: Callable[[], Refused | None]
    """Why the server takes no work now, if so: told before routing and before the body, as that is cheapest."""
    inside: Inside
    pulse: Pulse


def make_watch(engine: Engine, *, limits: Limits = UNLIMITED, log: RequestLog | None = None) -> Watch:
    """Return what looks at every request to an engine."""
    watch = Watch(engine.metrics, Gate(limits), log, lambda: no_room(engine), Inside(), Pulse(engine.device))
    engine.metrics.watch("in_flight", lambda: watch.inside.requests)
    return watch


def watched(app: ASGIApp, watch: Watch) -> ASGIApp:
    """Return the app behind the gate, with ids, counted and logged."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # pyright: ignore[reportGeneralTypeIssues]
            await app(scope, receive, send)
            return
        visit = Visit(scope, receive, send)
        watch.inside.requests += 1
        try:
            if ADMITTED in scope:
                caller = scope[ADMITTED]  # pyright: ignore[reportGeneralTypeIssues]
            else:
                caller = watch.gate.admit(visit.path, visit.headers, visit.address)
            if caller is not None:
                visit.notes["key"] = caller
            if visit.method == "POST" and visit.path.startswith(WORK) and (refused := watch.no_room()) is not None:
                raise refused
            await app(scope, visit.receive, visit.send)
        except Refused as refused:
            await visit.refuse(refused)
        finally:
            watch.inside.requests -= 1
            _finish(watch, visit)

    return handle


class Visit:
    """One request on its way through the app."""

    __slots__ = (
        "_receive", "_send", "address", "gone", "headers", "method", "notes", "path", "request_id", "scope", "started",
        "status", "trace",
    )  # fmt: skip

    def __init__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.started = scope.get(RECEIVED) or time.monotonic()
        self.scope, self._receive, self._send = scope, receive, send
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.address: str = scope["client"][0] if scope.get("client") else ""
        self.status = 0
        self.gone = False
        self.notes: dict[str, Any] = {}
        self.request_id, self.trace = identify(self.headers)
        scope[REQUEST_ID], scope[NOTES] = self.request_id, self.notes

    async def receive(self) -> Any:
        """Return the next message of the client, and notice when it has left."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the app, with the id of the request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Send the reply to a request that the routes do not see."""
        self.notes["reason"] = refused.reason
        status, headers, body = problem_reply(refused, self.path, self.request_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def identify(headers: list[tuple[bytes, bytes]]) -> tuple[str, tuple[str, str] | None]:
    """Return (id, (trace, span) or None): the client's own id where it is plain, else its trace's, else a new one."""
    request_id, trace = "", None
    for name, value in headers:
        if name == b"x-request-id" and PLAIN_ID.fullmatch(value):
            request_id = value.decode()
        elif name == b"traceparent" and (found := TRACE.fullmatch(value)):
            trace = (found[1].decode(), found[2].decode())
    return request_id or (trace[0] if trace else os.urandom(16).hex()), trace


def problem_reply(refused: Refused, path: str, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Return (status, headers, body) of the reply to what is refused; nobody is there to read a 499."""
    under_v2 = path == "/v2" or path.startswith("/v2/")
    headers = {"content-type": "application/json" if under_v2 else "application/problem+json"}
    if refused.retry_after_s:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return refused.status, headers, b"" if refused.status == 499 else encode_problem(refused, request_id)


def _finish(watch: Watch, visit: Visit) -> None:
    """Count the reply and log it; a client that left before it is 499, whatever the app said to nobody."""
    seconds = time.monotonic() - visit.started
    status, reason = visit.status, visit.notes.pop("reason", "ok")
    if found := visit.scope.get(REFUSAL):
        status, reason = found
    elif not status:
        status, reason = (499, "client-left") if visit.gone else (500, "fault")
    elif status >= 400 and reason == "ok":
        reason = str(status)
    route = visit.scope.get("path_template") or (SHED_ROUTE if status in SHED else UNMATCHED)
    if route == UNMATCHED:
        visit.notes["path"] = printable(visit.path[:MOST_PATH])[:MOST_PATH]
    quiet = visit.path.startswith(QUIET)
    answered(
        watch,
        Report(route, visit.method, status, reason, visit.request_id, visit.trace),
        seconds,
        visit.notes,
        quiet=quiet,
    )


class Report(NamedTuple):
    """What is told of every request."""

    route: str
    method: str
    status: int
    reason: str
    request_id: str
    trace: tuple[str, str] | None


def answered(watch: Watch, report: Report, seconds: float, notes: Mapping[str, Any], *, quiet: bool = False) -> None:
    """Count a request that has been answered, and write its line of the log unless it is `quiet`."""
    if report.status in SHED and report.reason != str(report.status):
        watch.metrics.shed(report.reason)
    watch.metrics.request(report.route, report.method, report.status, report.reason, seconds)
    if watch.log is None or quiet:
        return
    facts: dict[str, Any] = {
        "request_id": report.request_id,
        "route": report.route,
        "method": report.method,
        "status": report.status,
        "reason": report.reason,
        "ms": round(1e3 * seconds, 3),
    }
    if report.trace:
        facts["trace_id"], facts["parent_id"] = report.trace
    facts.update(notes)
    watch.log.tell("request", facts)


def unparsed(metrics: Metrics, log: RequestLog | None) -> Callable[[str, int, str, float, str], None]:
    """Return what counts and logs requests that the protocol refuses, before there is an app that could see them."""

    def hear(method: str, status: int, reason: str, seconds: float, request_id: str) -> None:
        metrics.request(UNPARSED, method, status, reason, seconds)
        if log is not None:
            facts = {"request_id": request_id, "route": UNPARSED, "status": status, "reason": reason}
            log.tell("request", facts | {"ms": round(1e3 * seconds, 3)})

    return hear
