"""`python -m mmjax.serve`: registered models answer over HTTP.

What is needed is checked before the port is taken into use: packages, port, digests and golden rows. Then the port
answers at once (`/health/live`), and requests from the moment that every batch size is compiled (`/health/ready`).
"""

import importlib.util
import os
import socket
import time
from typing import Any

import click

from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.errors import ConfigError
from mmjax.interrupts import Terminated

GRACE_S = 30
"""Time that requests in flight get after SIGTERM."""
BACKLOG = 1024
"""Connections that wait to be taken."""
STANDARD_ERROR = 2
"""Where the log of requests goes; standard output is for people, and for `--json`."""
KEEP_ALIVE_S = 65
"""Longer than the 60 s of common load balancers, so that they and not we close idle connections."""


def serve(
    models: tuple[str, ...],
    *,
    registry: str,
    host: str,
    port: int,
    queue: int,
    api_keys: str | None = None,
    rate: float | None = None,
    burst: int = 20,
) -> dict[str, Any]:
    """Serve until SIGTERM or Ctrl-C, finish what is in flight and return the address and the models.

    `api_keys` is a file of keys, `rate` and `burst` bound the requests of each. Raises ConfigError (packages, port,
    keys), BundleError (models), and what failed while models were compiled.
    """
    _check_packages()
    import uvicorn

    from mmjax.serving.app import make_app
    from mmjax.serving.engine import load_models, make_engine
    from mmjax.serving.limits import Limits, load_keys, open_to_others
    from mmjax.serving.log import RequestLog
    from mmjax.serving.outer import unparsed
    from mmjax.serving.protocol import make_protocol

    limits = Limits(keys=load_keys(api_keys, os.environ), rate=rate, burst=burst)
    if warning := open_to_others(host, limits):
        echo(warning)
    started = time.perf_counter()
    with _listen(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        engine = make_engine(load_models(models, registry), queue=queue)
        failure: list[BaseException] = []

        def warmed(error: BaseException | None) -> None:
            if error is not None:
                failure.append(error)
                server.should_exit = True
            elif engine.ready.is_set():
                echo(f"ready after {time.perf_counter() - started:.1f} s; stop with Ctrl-C")

        log = RequestLog(STANDARD_ERROR, lost=engine.metrics.line_lost)
        protocol = make_protocol(limits, refused=unparsed(engine.metrics, log))
        app = make_app(engine, warmed=warmed, limits=limits, log=log)
        server = uvicorn.Server(_uvicorn_config(app, protocol))
        names = [str(model) for model in engine.models]
        listener.listen(BACKLOG)  # so that nobody who reads the next line is refused
        echo(f"serving {', '.join(names)} on {url}")
        _run_until_stopped(server, listener)
        log.close()
    if failure:
        raise failure[0]
    return {"url": url, "models": names}


def _check_packages() -> None:
    absent = [name for name in ("litestar", "uvicorn", "httptools") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"serving: expected the packages of the extra 'serve', got no {', '.join(absent)}; pip install mmjax[serve]"
        )


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; nobody can connect before the server listens on it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host} --port {port}: expected an address of this machine with a free port, got: {told}"
        ) from error
    return listener


def _run_until_stopped(server: Any, listener: socket.socket) -> None:
    """Run the server; a signal that it has obeyed in good order is no error, so the process ends with 0."""
    try:
        server.run(sockets=[listener])
    except (Terminated, KeyboardInterrupt):
        if not server.started or server.force_exit:
            raise


def _uvicorn_config(app: Any, protocol: Any) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        http=protocol,
        proxy_headers=False,  # the address of a client is the one that it has, not one that it says
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


@click.command(name="serve", help="Answer requests over HTTP with registered models.")
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="NAME[:VERSION|@ALIAS]",
    help="A registered model, or a bundle's folder; may be given several times.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes any."
)
@click.option(
    "--queue",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests in the server at a time; more are answered with 503.",
)
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where models are registered."
)
@click.option(
    "--api-keys", type=click.Path(), metavar="FILE", help="Ask for one of these keys (NAME:sha256:HEX a line)."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second of one key; 429 beyond.")
@click.option(
    "--burst",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests of one key at once, with --rate.",
)
@json_option
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    queue: int,
    registry: str,
    api_keys: str | None,
    rate: float | None,
    burst: int,
) -> dict[str, Any]:
    """Serve registered models."""
    for note in configure().notes:
        echo(note)
    return serve(
        models, registry=registry, host=host, port=port, queue=queue, api_keys=api_keys, rate=rate, burst=burst
    )


if __name__ == "__main__":
    run(command)
