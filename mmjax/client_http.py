"""A server over HTTP by the standard library: connections that are kept, retries, one error for every refusal.

A prediction changes nothing, so a request may be sent again whenever its reply did not come.
"""

import contextlib
import email.utils
import http.client
import json
import logging
import queue
import random
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mmjax.errors import ConfigError, MmjaxError

BUSY = (429, 503)
"""Statuses that another try may turn into an answer."""
NOT_READY = "not-ready"
"""The server's word for models that it is compiling."""
LONGEST_TIMEOUT_MS = 3_600_000
"""A server takes no longer ones."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
"""Before the second try and at most before a later one, where the server does not say."""
LONGEST_REFUSED_WAIT_S = 1.0
"""The same where nothing listens yet: such a try costs nobody anything."""

LOGGER = logging.getLogger("mmjax.client")


class ServerError(MmjaxError):
    """A server that refused a request or did not answer it. `problems` are the lines of the server.

    `status` is None when no reply came; `reason` is the server's word (`bad-cell`), or `timeout`, `no-answer` or
    `not-mmjax`. The server's log knows the request by `request_id`.
    """

    def __init__(
        self, where: str, problems: str | tuple[str, ...], *, status: int | None, reason: str, request_id: str
    ) -> None:
        super().__init__(problems)
        self.where = where
        self.status = status
        self.reason = reason
        self.request_id = request_id

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        told = "\n  ".join(self.problems)
        return f"{self.where}: {status}{self.reason} (request {self.request_id}): {told}"


class Reply(NamedTuple):
    """What a server sent."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes
    where: str
    """Method and path that were asked."""
    request_id: str

    def json(self) -> dict[str, Any]:
        """Return the object in the body; ServerError when there is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            told = "expected a JSON object, got something else; is it a server of mmjax?"
            raise ServerError(
                self.where, told, status=self.status, reason="not-mmjax", request_id=self.request_id
            ) from None
        return document


class Server(NamedTuple):
    """Where a server is, and connections to it that are idle. Threads may share it."""

    scheme: str
    host: str
    port: int | None
    base: str
    """Path before every route; empty unless the URL has one."""
    headers: Mapping[str, str]
    """Sent with every request."""
    timeout_s: float
    """For one answer, all tries together."""
    retries: int
    idle: "queue.LifoQueue[http.client.HTTPConnection]"


def make_server(url: str, *, api_key: str | None, timeout_s: float, retries: int) -> Server:
    """Return the Server at `url`, nothing sent yet; ConfigError unless it is http(s)://host[:port][/path], and for
    `timeout_s` or `retries` out of range."""
    try:
        parts = urlsplit(url)
        host, path = (parts.hostname or "").encode("idna"), parts.path
        plain = path.isascii() and path.isprintable() and " " not in path
        sound = parts.scheme in ("http", "https") and bool(host) and (parts.port or 0) >= 0 and plain
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{url}: expected http://host:port, got no such address; give that of a server")
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise ConfigError("api_key: expected printable ASCII characters, got others, or none")
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s: expected seconds above 0, got {timeout_s}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ConfigError(f"retries: expected a whole number of at least 0, got {retries!r}; 0 tries once")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    place = (parts.scheme, parts.hostname or "", parts.port, parts.path.rstrip("/"))
    return Server(*place, headers, timeout_s, retries, queue.LifoQueue())


def send(
    server: Server, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Return the reply with a status below 400; ServerError for any other, and when none comes in `timeout_s`.

    429, 503 and broken connections are tried again `retries` times, after `Retry-After` or a wait that doubles, with
    jitter. A server that is starting, where nothing listens yet or models are compiled, is waited for as long as
    `timeout_s` allows, which the logger `mmjax.client` tells. With 0 `retries` any failure is raised at once.
    """
    where, request_id, tried, refusals, told = f"{method} {path}", uuid.uuid4().hex, 0, 0, False
    began = time.monotonic()
    ends = began + server.timeout_s
    while True:
        left = ends - time.monotonic()
        sent = {**server.headers, "X-Request-ID": request_id, **(headers or {})}
        if method == "POST":
            sent["X-Request-Timeout-Ms"] = str(int(min(max(1e3 * left, 1), LONGEST_TIMEOUT_MS)))
        try:
            reply = Reply(*_exchange(server, method, path, body, sent, left), where, request_id)
            if reply.status < 400:
                return reply
            failure, wait, refused = refusal(reply), retry_after_s(reply.headers.get("retry-after", "")), False
        except (OSError, http.client.HTTPException) as error:
            failure, wait, refused = _no_answer(server, where, request_id, error), 0.0, _is_refused(error)
        wait += _pause_s(refusals, LONGEST_REFUSED_WAIT_S) if refused else _pause_s(tried, LONGEST_WAIT_S)
        starting = refused or failure.reason == NOT_READY
        again = starting or (tried < server.retries and (failure.status in BUSY or failure.reason == "no-answer"))
        if not (again and server.retries) or time.monotonic() + wait >= ends:
            if starting and server.retries:
                waited = f"waited {time.monotonic() - began:.1f} s, timeout_s allows {server.timeout_s:g}"
                failure.problems = tuple(f"{problem} ({waited})" for problem in failure.problems)
            raise failure
        if starting and not told:
            why = "; ".join(failure.problems)
            LOGGER.warning("%s: waiting for it, up to %g s: %s", _url(server), server.timeout_s, why)
        tried, refusals, told = tried + (not starting), refusals + refused, told or starting
        time.sleep(wait)


def _pause_s(before: int, longest_s: float) -> float:
    """Return the seconds to wait after as many failures `before` this one: doubled each time, jitter takes off up to
    half."""
    return random.uniform(0.5, 1.0) * min(longest_s, FIRST_WAIT_S * 2 ** min(before, 16))


def _is_refused(error: Exception) -> bool:
    """Return whether nothing listens there: a server that is starting, or none."""
    return isinstance(error, ConnectionRefusedError)


def ask(server: Server, method: str, path: str) -> Reply:
    """Return the reply to one request without a body, whatever its status; ServerError when none comes."""
    where, request_id = f"{method} {path}", uuid.uuid4().hex
    try:
        sent = {**server.headers, "X-Request-ID": request_id}
        return Reply(*_exchange(server, method, path, None, sent, server.timeout_s), where, request_id)
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(server, where, request_id, error) from error


def close(server: Server) -> None:
    """Close the connections that are idle."""
    with contextlib.suppress(queue.Empty):
        while True:
            server.idle.get_nowait().close()


def _exchange(
    server: Server, method: str, path: str, body: bytes | None, headers: Mapping[str, str], left_s: float
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body; over a kept connection, or a new one where the server had closed that."""
    with contextlib.suppress(queue.Empty):
        kept = server.idle.get_nowait()
        with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
            return _over(kept, server, method, path, body, headers, left_s)
    kind = http.client.HTTPSConnection if server.scheme == "https" else http.client.HTTPConnection
    return _over(kind(server.host, server.port), server, method, path, body, headers, left_s)


def _over(
    connection: http.client.HTTPConnection,
    server: Server,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    left_s: float,
) -> tuple[int, dict[str, str], bytes]:
    connection.timeout = min(max(left_s, 1e-3), LONGEST_TIMEOUT_MS / 1e3)  # a socket takes no endless one
    try:
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request(method, server.base + path, body, dict(headers))
        reply = connection.getresponse()
        content = reply.read()
    except BaseException:
        connection.close()
        raise
    server.idle.put(connection)
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, content


def refusal(reply: Reply) -> ServerError:
    """Return the error that a reply of status 400 or more tells, as problem details or as `{"error": ...}`."""
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {"error": f"{http.client.responses.get(reply.status, 'an error')}, told by something that is not mmjax"}
    kind = str(told.get("type", ""))
    reason = kind.removeprefix("urn:mmjax:") if kind.startswith("urn:mmjax:") else "refused"
    lines = told.get("errors") or [told.get("detail") or told.get("error") or "no more is told"]
    problems = tuple(map(str, lines)) if isinstance(lines, list) else (str(lines),)
    request_id = str(told.get("request_id") or reply.request_id)
    return ServerError(reply.where, problems, status=reply.status, reason=reason, request_id=request_id)


def retry_after_s(value: str) -> float:
    """Return the seconds that a `Retry-After` header asks for, a number or a date; 0 when it says nothing.

    >>> retry_after_s("2"), retry_after_s(""), retry_after_s("soon")
    (2.0, 0.0, 0.0)
    """
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _no_answer(server: Server, where: str, request_id: str, error: Exception) -> ServerError:
    reason = "timeout" if isinstance(error, TimeoutError) else "no-answer"
    limit = f" within {server.timeout_s:g} s" if reason == "timeout" else ""
    told = f"{_url(server)}: expected an answer{limit}, got: {error or type(error).__name__}"
    if isinstance(error, ConnectionRefusedError):
        told += "; is the server running? start one with `mmjax serve`"
    return ServerError(where, told, status=None, reason=reason, request_id=request_id)


def _url(server: Server) -> str:
    """Return where a server is, with the port that is meant where none was given."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{server.scheme}://{host}:{server.port or (443 if server.scheme == 'https' else 80)}{server.base}"
