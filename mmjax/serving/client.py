"""A live server as a client meets it, by the standard library alone: one connection, one request at a time."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from mmjax.errors import BundleError, ConfigError

TIMEOUT_S = 30.0
"""For one reply."""
PATIENCE_S = 60.0
"""How long a server may say that it is not ready, or too busy."""
HEADERS = {"tabular": {"content-type": "application/json"}, "image": {"content-type": "image/*"}}


class Live(NamedTuple):
    """A server that serves a model with a certain digest."""

    url: str
    connection: http.client.HTTPConnection
    base: str
    """Path before every route; empty unless the URL has one."""
    name: str
    version: int | None
    platform: str
    """What it computes on: `cpu`, `gpu` or `tpu`."""


@contextlib.contextmanager
def connected(url: str, digest: str) -> Iterator[Live]:
    """Give the Live server at `url`; ConfigError when none answers there, BundleError when it serves no such model."""
    parts = _parsed(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)) as connection:
        live = Live(url, connection, parts.path.rstrip("/"), "", None, "")
        _wait_until_ready(live)
        served = _get(live, "/models")["models"]
        same = [model for model in served if model["digest"] == digest]
        if not same:
            there = ", ".join(f"{model['name']}:{model['version']} ({model['digest'][:12]})" for model in served)
            raise BundleError(f"--url {url}: expected a server of the model with digest {digest[:12]}, got {there}")
        platform = _get(live, "/health")["system"]["device"]["platform"]
        yield live._replace(name=same[0]["name"], version=same[0]["version"], platform=platform)


def _parsed(url: str) -> SplitResult:
    """Return the parts of a URL; ConfigError unless it is one of http or https with a host."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound:
        raise ConfigError(f"--url {url}: expected http://host:port, got no such address; give that of a server")
    return parts


def ask(live: Live, body: bytes, *, kind: str) -> tuple[int, dict[str, Any]]:
    """Return (status, document) for a body sent to `/predict/KIND`, `tabular` or `image`; a 503 is asked again."""
    query = {"model": live.name} | ({} if live.version is None else {"version": live.version})
    path = f"/predict/{kind}" + (f"?{urlencode(query, quote_via=quote)}" if kind == "image" else "")
    ends = time.monotonic() + PATIENCE_S
    while True:
        status, document = _request(live, "POST", path, body, HEADERS[kind])
        if status != 503 or time.monotonic() > ends:
            return status, document
        time.sleep(0.2)


def _wait_until_ready(live: Live) -> None:
    ends = time.monotonic() + PATIENCE_S
    while (status := _request(live, "GET", "/health/ready")[0]) == 503 and time.monotonic() < ends:
        time.sleep(0.1)
    if status != 200:
        raise ConfigError(f"--url {live.url}: expected a server that is ready, got status {status} of /health/ready")


def _get(live: Live, path: str) -> dict[str, Any]:
    status, document = _request(live, "GET", path)
    if status != 200:
        raise ConfigError(f"--url {live.url}: expected a server of mmjax, got status {status} of {path}")
    return document


def _request(
    live: Live, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    try:
        live.connection.request(method, live.base + path, body, headers or {})
        reply = live.connection.getresponse()
        document = json.loads(reply.read())
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"--url {live.url}: expected a server that answers, got: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--url {live.url}: expected JSON of {path}, got something else; is it mmjax?") from error
    if not isinstance(document, dict):
        raise ConfigError(f"--url {live.url}: expected a JSON object of {path}, got another value; is it mmjax?")
    return reply.status, document
