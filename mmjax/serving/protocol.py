"""HTTP/1.1 as uvicorn speaks it, with bounds on what a client may send and on how long it may take.

A subclass of uvicorn's httptools protocol: it takes over the receiving side (uvicorn has no deadline and no bound
there) and leaves the answering side as it is. `UVICORN` lists all that it rests on; a test holds it against the
installed version, and `make_protocol` refuses to start on another.
"""

import inspect
import itertools
import re
import secrets
import time
from asyncio import BaseTransport, Transport
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Literal, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mmjax.errors import ConfigError
from mmjax.serving.express import Express, Held
from mmjax.serving.limits import Limits, connections_allowed
from mmjax.serving.observe import RECEIVED, REFUSAL
from mmjax.serving.routes import REQUEST_ID
from mmjax.serving.wire import Refused, encode_problem

FRAMING_BYTES = 256 * 1024
"""Chunk sizes, chunk extensions and trailers of one body."""
AHEAD_BYTES = 2**20
"""What is read of a body before the app asks for it. uvicorn reads 64 KiB ahead: three rounds more for 200 KiB."""
LATER_BYTES = 64 * 1024
"""What a client may send while its request waits to be parsed; then it has to wait too."""
HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

UVICORN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "connection_made": ("transport",),
        "connection_lost": ("exc",),
        "shutdown": (),
        "data_received": ("data",),
        "on_message_begin": (),
        "on_url": ("url",),
        "on_headers_complete": (),
        "on_body": ("body",),
        "on_message_complete": (),
        "on_response_complete": (),
        "_unset_keepalive_if_required": (),
        "_start_asgi_task": ("cycle", "app"),
        "__init__": ("config", "server_state", "app_state", "_loop"),
    }
)
"""Methods of uvicorn's protocol that are called or overridden, with their parameters."""
UVICORN_FIELDS = (
    "parser", "transport", "loop", "flow", "cycle", "headers", "scope", "connections", "server_state", "pipeline",
    "timeout_keep_alive_task",
)  # fmt: skip
"""Fields of uvicorn's protocol that are read."""
CYCLE_FIELDS = ("response_started", "response_complete", "keep_alive", "disconnected", "message_event", "scope", "body")
"""Fields of uvicorn's cycle that are read, and some of them written."""

Stage = Literal["idle", "head", "body", "refused"]
Told = Callable[[str, int, str, float, str], None]
"""Hears of a refusal that no app sees: method, status, reason, seconds, request id."""


def changed(protocol: type = HttpToolsProtocol, cycle: type = RequestResponseCycle) -> list[str]:
    """Return a line for each thing of uvicorn that is no longer as this module expects."""
    wrong = []
    for name, parameters in UVICORN.items():
        method = getattr(protocol, name, None)
        got = tuple(inspect.signature(method).parameters)[1:] if method else None
        if got != parameters:
            wrong.append(f"uvicorn: expected HttpToolsProtocol.{name}{parameters}, got {got}; see serving/protocol.py")
    for kind, fields in ((protocol, UVICORN_FIELDS), (cycle, CYCLE_FIELDS)):
        source = inspect.getsource(kind.__init__)
        absent = [field for field in fields if f"self.{field}" not in source]
        wrong += [f"uvicorn: expected {kind.__name__}.{field}, got none; see serving/protocol.py" for field in absent]
    return wrong


def make_protocol(limits: Limits, *, refused: Told, express: Express | None = None) -> type[HttpToolsProtocol]:
    """Return the protocol class for `uvicorn.Config(http=...)`; ConfigError where uvicorn is not as expected.

    Requests that `express` takes never reach the app.
    """
    if wrong := changed():
        raise ConfigError(wrong)

    class Bounded(BoundedProtocol):
        """The protocol with these limits."""

    Bounded.limits = limits
    Bounded.most = connections_allowed() if limits.max_connections is None else limits.max_connections
    Bounded.refused = staticmethod(refused)
    Bounded.express = express
    return Bounded


class _Stop(Exception):
    """Raised in a callback of the parser to stop it."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with deadlines and bounds.

    One timer at most runs for a connection, and none for a request that comes in one piece.
    """

    limits: Limits
    refused: Told
    most: int
    express: Express | None

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._stage: Stage = "idle"
        self._timer: Any = None
        self._began = time.monotonic()
        self._head_bytes = 0
        self._framing_bytes = 0
        self._chunks = 0
        self._problem: Refused | None = None
        self._in_head = False
        self._held: Held | None = None
        self._later = b""
        """What has come of a request that has to wait before it is parsed."""
        self._received: float | None = None
        """When that came, by `time.monotonic`."""

    # ---- the connection

    def connection_made(self, transport: BaseTransport) -> None:
        """Start the time in which a request has to come."""
        super().connection_made(cast(Transport, transport))
        self._start_timer(self.limits.header_timeout_s)
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of a client that left in the middle of its headers; one that left later is known to the app."""
        if self.express is not None:
            self.express.forget(self)
        self.go_on()
        self._stop_timer()
        self._start_held()
        if self._stage == "head":
            self._tell(499, "client-left")
        super().connection_lost(exc)
        if self.express is not None:
            self.express.gone(self)

    def shutdown(self) -> None:
        """End the connection, now or once its request is answered."""
        if self.express is not None:
            self.express.forget(self)
        self.go_on()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, refuse what is too much, and set the time in which the rest has to come."""
        if self._later:
            self._later += data
            if len(self._later) > LATER_BYTES:
                self.flow.pause_reading()
            return
        if self._stage == "idle" and self.express is not None and self._answered() and self.express.keeps(self, data):
            self._stop_timer()
            self._unset_keepalive_if_required()
            self._later, self._received = data, time.monotonic()
            return
        self._feed(data)

    def go_on(self) -> None:
        """Parse what came while too much else was to be done."""
        data, self._later = self._later, b""
        if data:
            self.flow.resume_reading()
            self._feed(data)
            self._received = None

    def _feed(self, data: bytes) -> None:
        if self._stage == "refused" or self.parser is None:
            return
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        self._framing_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if self._stage != "idle":
                self._check_sizes()
        except (httptools.HttpParserError, _Stop) as error:
            self._refuse(self._problem or _not_http(error))
            return
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # answered as if no upgrade had been asked for, as RFC 9110 allows
        if self._timer is None:
            self._time_the_rest()

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        """Start counting."""
        super().on_message_begin()
        self._stop_timer()
        self._stage = "head"
        self._began = time.monotonic()
        self._head_bytes = self._framing_bytes = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        """Refuse a long URL."""
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            self._stop(Refused(400, "long-url", f"URL: expected at most {self.limits.max_url_bytes:,} bytes, got more"))

    def on_headers_complete(self) -> None:
        """Refuse many or large headers and a Host that is none; then the app gets to work."""
        self._check_head()
        self._stop_timer()
        self._stage = "body"
        self._framing_bytes = 0
        self._in_head = True
        super().on_headers_complete()
        self._in_head = False

    def on_chunk_header(self) -> None:
        """Refuse a body of very many chunks."""
        self._chunks += 1
        if self._chunks > self.limits.max_chunks:
            told = f"body: expected at most {self.limits.max_chunks:,} chunks, got more; send larger ones"
            self._stop(Refused(400, "many-chunks", told))

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        self._framing_bytes -= len(body)
        super().on_body(body)
        if self.flow.read_paused and len(self.cycle.body) < AHEAD_BYTES:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """End the time for the body."""
        self._stop_timer()
        if len(self.headers) > self.limits.max_headers:  # trailers are among them
            self._stop(self._many_headers())
        self._stage = "idle"
        super().on_message_complete()
        if (held := self._held) is not None:
            self._held = None
            assert self.express is not None
            if not self.express.take(self, held):
                self.start(held)

    def on_response_complete(self) -> None:
        """Give a client that was answered before its body had come a short time for the rest of it."""
        if self._stage == "refused" and not self.pipeline:
            self.transport.close()
        super().on_response_complete()
        if self._stage == "body" and self.cycle.response_complete:
            self._stop_timer()
            self._start_timer(self.limits.unread_timeout_s)

    # ---- requests that may need no app

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Start the app, but not yet for a request that may be answered without it."""
        if self._received is not None:
            cycle.scope[RECEIVED] = self._received  # pyright: ignore[reportGeneralTypeIssues]
        if (
            self._in_head
            and self.express is not None
            and not self.flow.write_paused
            and self.express.is_plain(cycle.scope)
        ):
            self._held = Held(cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def _start_held(self) -> None:
        """Start the app for a request whose body is not here: what becomes of it is the app's to tell."""
        if (held := self._held) is not None:
            self._held = None
            self.start(held)

    def answer(self, held: Held, status: bytes, head: bytes, body: bytes) -> bool:
        """Write a reply of status line, header lines and body to a request whose app was not started.

        Returns False when the client has left.
        """
        cycle = held.cycle
        if cycle.disconnected or self.transport.is_closing():
            return False
        lines, closes = _default_lines(tuple(self.server_state.default_headers))
        keep_alive = cycle.keep_alive and not closes
        close = b"\r\n" if keep_alive or closes else b"connection: close\r\n\r\n"
        try:
            self.transport.write(b"".join((status, lines, head, close, body)))
        except RuntimeError:  # the connection is broken
            return False
        cycle.response_started = cycle.response_complete = True
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def start(self, held: Held) -> None:
        """Start the app for a request that cannot be answered without it."""
        super()._start_asgi_task(held.cycle, held.app)

    # ---- bounds

    def _check_head(self) -> None:
        size, hosts, host = len(self.url), 0, b""
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts, host = hosts + 1, value
        if len(self.headers) > self.limits.max_headers:
            self._stop(self._many_headers())
        if size > self.limits.max_header_bytes:
            self._stop(self._large_head())
        version = self.parser.get_http_version() if self.parser else ""
        if version not in ("1.1", "1.0"):
            self._stop(Refused(400, "bad-http", f"request: expected HTTP/1.1 or 1.0, got {version}"))
        if (hosts or version == "1.1") and (hosts != 1 or not HOST.fullmatch(host)):
            self._stop(Refused(400, "bad-host", "Host: expected one name or address with an optional port"))

    def _check_sizes(self) -> None:
        if self._stage == "head" and self._head_bytes > self.limits.max_header_bytes:
            self._stop(self._large_head())
        if self._stage == "body" and self._framing_bytes > FRAMING_BYTES:
            self._stop(Refused(400, "bad-chunks", "body: expected chunks, got mostly extensions or trailers"))

    def _many_headers(self) -> Refused:
        return Refused(431, "many-headers", f"headers: expected at most {self.limits.max_headers:,}, got more")

    def _large_head(self) -> Refused:
        told = f"headers: expected at most {self.limits.max_header_bytes:,} bytes, got more"
        return Refused(431, "large-headers", told)

    def _stop(self, problem: Refused) -> None:
        """Leave the parser, which wraps what a callback raises."""
        self._problem = problem
        raise _Stop

    # ---- time

    def _time_the_rest(self) -> None:
        """Let a timer run while something of a request is missing; it is not set back by what comes."""
        if self._stage == "body":
            answered = self.cycle is not None and self.cycle.response_complete
            self._start_timer(self.limits.unread_timeout_s if answered else self.limits.body_timeout_s)
        elif self._stage == "head" or (self._answered() and self.timeout_keep_alive_task is None):
            self._start_timer(self.limits.header_timeout_s)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._too_slow, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, seconds: float) -> None:
        self._timer = None
        self._start_held()
        if self._stage == "head":
            self._refuse(Refused(408, "slow-headers", f"headers: expected all of them within {seconds:g} s"))
        elif self._stage == "body" and not self.cycle.response_started:
            self._refuse(Refused(408, "slow-body", f"body: expected all of it within {seconds:g} s"))
        else:
            self.transport.close()

    # ---- room

    def _make_room(self) -> None:
        """Close the connection that waits longest for its client, of a few that do: new ones always get in."""
        others = (other for other in self.connections if isinstance(other, BoundedProtocol) and other is not self)
        waiting = itertools.islice((other for other in others if other._waits()), 16)
        if (oldest := min(waiting, key=lambda other: other._began, default=None)) is not None:
            oldest._give_room()

    def _waits(self) -> bool:
        """Return whether it is the client's turn."""
        return not self.transport.is_closing() and not self._later and (self._answered() or self._stage == "body")

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give_room(self) -> None:
        self._start_held()
        if self._stage == "body" and not self.cycle.response_complete:
            self.cycle.scope[REFUSAL] = (503, "many-connections")  # pyright: ignore[reportGeneralTypeIssues]
        elif self._stage == "head":
            self._tell(503, "many-connections")
        self._stage = "refused"
        self.transport.close()

    # ---- refusals

    def _refuse(self, problem: Refused) -> None:
        """Answer, stop listening to the client, and close once it has stopped sending, so that it sees the answer.

        While an earlier request is being answered there is no answer to this one, but the connection is closed.
        """
        self._start_held()
        if self.pipeline and self._stage == "body":  # an earlier request is answered first, and this one not at all
            self.pipeline.popleft()
            self._tell(problem.status, problem.reason)
            self._stop_timer()
            self._stage = "refused"
            return
        waiting = self.cycle is not None and not self.cycle.response_complete
        mine = waiting and self._stage == "body"
        if waiting and (not mine or self.cycle.response_started):
            self._stage = "refused"
            self.cycle.keep_alive = False
            if mine:
                self.transport.close()
            return
        request_id = self.cycle.scope.get(REQUEST_ID) if mine else None
        request_id = request_id or secrets.token_hex(16)
        if mine:  # the app hears of a client that left; the scope tells it why
            self.cycle.scope[REFUSAL] = (problem.status, problem.reason)  # pyright: ignore[reportGeneralTypeIssues]
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._tell(problem.status, problem.reason, request_id)
        self._stop_timer()
        self._stage = "refused"
        self.transport.write(_reply(problem, request_id))
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(self.limits.unread_timeout_s)

    def _tell(self, status: int, reason: str, request_id: str = "") -> None:
        method = (self.parser.get_method() or b"").decode("ascii", "replace") if self.parser else ""
        self.refused(method, status, reason, time.monotonic() - self._began, request_id)


@lru_cache(maxsize=4)
def _default_lines(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, bool]:
    """Return the lines of headers of every reply, and whether they close the connection. They change once a second."""
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return lines, any(name == b"connection" for name, _ in headers)


def _not_http(error: Exception) -> Refused:
    """Return the refusal of what the parser does not take; its own words tell nothing but the rule."""
    cause = "the URL or a header cannot be read" if isinstance(error, httptools.HttpParserCallbackError) else str(error)
    return Refused(400, "bad-http", f"request: expected HTTP/1.1, got something else: {cause[:200]}")


def _reply(problem: Refused, request_id: str) -> bytes:
    body = encode_problem(problem, request_id)
    head = (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
