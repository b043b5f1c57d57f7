"""A live server as a parity check meets it: the one that serves a certain model, one request at a time."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from mmjax.client_http import Server, ServerError, ask, close, make_server, send
from mmjax.errors import BundleError, ConfigError
from mmjax.schema import Modality

PATIENCE_S = 60.0
"""How long a server may say that it is not ready, or too busy."""
TRIES = 100
DOORS = {"table": "/predict/tabular", "image": "/predict/image", "multimodal": "/predict"}
"""By modality; images go as files, all else as JSON."""


class Live(NamedTuple):
    """A server that serves a model with a certain digest."""

    url: str
    server: Server
    name: str
    version: int | None
    platform: str
    """What it computes on: `cpu`, `gpu` or `tpu`."""


@contextlib.contextmanager
def connected(url: str, digest: str) -> Iterator[Live]:
    """Give the Live server at `url`; ConfigError when none answers there, BundleError when it serves no such model."""
    try:
        server = make_server(url, api_key=None, timeout_s=PATIENCE_S, retries=TRIES)
    except ConfigError as error:
        raise ConfigError(f"--url {error}") from error
    try:
        _wait_until_ready(url, server)
        served = _get(url, server, "/models")["models"]
        same = [model for model in served if model["digest"] == digest]
        if not same:
            there = ", ".join(f"{model['name']}:{model['version']} ({model['digest'][:12]})" for model in served)
            raise BundleError(f"--url {url}: expected a server of the model with digest {digest[:12]}, got {there}")
        platform = _get(url, server, "/health")["system"]["device"]["platform"]
        yield Live(url, server, same[0]["name"], same[0]["version"], platform)
    finally:
        close(server)


def reply_to(live: Live, body: bytes, *, kind: Modality) -> dict[str, Any]:
    """Return the reply to a body sent to the door of a modality.

    Raises ServerError where the server refuses it, ConfigError where there is no server any more.
    """
    query = {"model": live.name} | ({} if live.version is None else {"version": live.version})
    path = DOORS[kind] + (f"?{urlencode(query, quote_via=quote)}" if kind == "image" else "")
    headers = {"Content-Type": "image/*" if kind == "image" else "application/json"}
    try:
        return send(live.server, "POST", path, body, headers).json()
    except ServerError as error:
        if error.status is None:
            raise _no_server(live.url, error) from error
        raise


def _wait_until_ready(url: str, server: Server) -> None:
    ends = time.monotonic() + PATIENCE_S
    while (status := _status(url, server)) == 503 and time.monotonic() < ends:
        time.sleep(0.1)
    if status != 200:
        raise ConfigError(f"--url {url}: expected a server that is ready, got status {status} of /health/ready")


def _status(url: str, server: Server) -> int:
    try:
        return ask(server, "GET", "/health/ready").status
    except ServerError as error:
        raise _no_server(url, error) from error


def _get(url: str, server: Server, path: str) -> dict[str, Any]:
    try:
        return send(server, "GET", path).json()
    except ServerError as error:
        if error.status is None:
            raise _no_server(url, error) from error
        raise ConfigError(f"--url {url}: expected a server of mmjax, got: {error}") from error


def _no_server(url: str, error: ServerError) -> ConfigError:
    return ConfigError(f"--url {url}: expected a server that answers, got: {'; '.join(error.problems)}")
