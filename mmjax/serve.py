"""`python -m mmjax.serve`: registered models answer over HTTP.

What is needed is checked before the port is taken into use: packages, port, keys and digests. Then the port answers at
once (`/health/live`), and requests from the moment that every batch size is compiled and has given the golden answers
(`/health/ready`). SIGTERM ends it in good order, a second one at once; SIGHUP loads what aliases mean now.
"""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import contextlib
import gc
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmjax.artifact.registry import list_models
from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.errors import BundleError, ConfigError
from mmjax.serving.device import COMPUTE, step_back
from mmjax.serving.settings import Settings, help_of, load_settings, option

if TYPE_CHECKING:  # all else of `serving` needs the packages of the extra
    from mmjax.serving.engine import Engine
    from mmjax.serving.limits import Limits
    from mmjax.serving.outer import Watch

F = TypeVar("F", bound=Callable[..., Any])

GRACE_S = 30
"""Time that requests in flight get after SIGTERM."""
BACKLOG = 1024
"""Connections that wait to be taken."""
LISTENERS = 16
"""Handles of the listening socket: libuv takes one connection from each in a round of the event loop, and under load,
when a round takes milliseconds, new connections would wait for a second."""
KEEP_ALIVE_S = 65
"""Longer than the 60 s of common load balancers, so that they and not we close idle connections."""


def serve(settings: Settings) -> dict[str, Any]:
    """Serve until SIGTERM or Ctrl-C, finish what is in flight and return the address and the models.

    Raises ConfigError (packages, port, keys), BundleError (models), and what failed while models were compiled.
    """
    _check_packages()
    from mmjax.serving.app import make_app
    from mmjax.serving.engine import load_models, make_engine
    from mmjax.serving.life import Plan, Server
    from mmjax.serving.log import RequestLog
    from mmjax.serving.outer import make_watch
    from mmjax.serving.reload import Source

    started = time.perf_counter()
    limits = _limits(settings)
    with _listen(settings.host, settings.port) as listener:
        source = Source(settings.registry, settings.max_batch, settings.abstain_below)
        models = load_models(
            _references(settings), source.registry, max_batch=source.max_batch, abstain_below=source.abstain_below
        )
        engine = make_engine(models, queue=settings.queue, deadline_s=settings.deadline_ms / 1e3)
        log = RequestLog(sys.stderr.fileno(), lost=engine.metrics.line_lost) if settings.log == "requests" else None
        failure: list[BaseException] = []

        def warmed(error: BaseException | None) -> None:
            if error is not None:
                failure.append(error)
                server.should_exit = True
            elif engine.ready.is_set():
                gc.freeze()  # what lives as long as the server need not be looked at again
                echo(f"ready after {time.perf_counter() - started:.1f} s; stop with Ctrl-C")

        def tell(event: str, facts: dict[str, Any]) -> None:
            echo(f"{event}: {', '.join(f'{key} {value}' for key, value in facts.items())}")

        watch = make_watch(engine, limits=limits, log=log)
        app = make_app(engine, warmed=warmed, watch=watch, tell=echo)
        plan = Plan(source, settings.drain_delay_s, settings.watch_s, GRACE_S, tell)
        server = Server(_uvicorn_config(app, limits, engine, watch), engine, plan)
        names = [str(model) for model in engine.models]
        listener.listen(BACKLOG)  # so that nobody who reads the next line is refused
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{listener.getsockname()[1]}"
        echo(f"serving {', '.join(names)} on {url}")
        server.run(sockets=[listener, *(listener.dup() for _ in range(LISTENERS - 1))])
        if log is not None:
            log.close()
    if failure:
        raise failure[0]
    with contextlib.suppress(OSError):  # whether anybody reads it changes nothing
        echo("stopped")
    return {"url": url, "models": names}


def _references(settings: Settings) -> tuple[str, ...]:
    """Return the models to serve: those named, else all registered ones, each as `production` or its newest version."""
    if settings.models is not None:
        return settings.models
    found = tuple(list_models(Path(settings.registry)))
    if not found:
        raise BundleError(
            f"--registry {settings.registry}: expected at least one registered model, found none; train one"
        )
    return found


def _check_packages() -> None:
    absent = [name for name in ("litestar", "uvicorn", "httptools") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"serving: expected the packages of the extra 'serve', got no {', '.join(absent)}; run make install, or "
            "pip install '.[serve]' in a clone of mmjax"
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
            f"--host {host} --port {port}: expected an address of this machine with a free port, got: {told}; "
            "name another port, or 0 for any that is free"
        ) from error
    return listener


def _limits(settings: Settings) -> "Limits":
    """Return what requests may be; a warning goes to the user where others can reach a server without keys."""
    from mmjax.serving.limits import Limits, load_keys, open_to_others

    keys = load_keys(settings.api_keys, os.environ)
    limits = Limits(keys=keys, rate=settings.rate, burst=settings.burst)
    if (warning := open_to_others(settings.host, limits)) is not None:
        echo(f"warning: {warning}")
    return limits


def _uvicorn_config(app: Any, limits: "Limits", engine: "Engine", watch: "Watch") -> Any:
    import uvicorn

    from mmjax.serving.express import Express
    from mmjax.serving.outer import unparsed
    from mmjax.serving.protocol import make_protocol

    return uvicorn.Config(
        app,
        http=make_protocol(limits, refused=unparsed(engine.metrics, watch.log), express=Express(engine, watch)),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def _option(key: str, **more: Any) -> Callable[[F], F]:
    """Return the option of the command line for a key of Settings."""
    return click.option(option(key), key, default=None, help=help_of(key), **more)


@click.command(name="serve", help="Answer requests over HTTP with registered models.")
@click.option("--config", "path", metavar="FILE", help="A YAML file of these settings, such as configs/serve.yaml.")
@click.option("--model", "models", multiple=True, metavar="NAME[:VERSION|@ALIAS]", help=help_of("models"))
@_option("host")
@_option("port", type=int)
@_option("registry")
@_option("queue", type=int)
@_option("max_batch", type=int)
@_option("deadline_ms", type=int)
@_option("drain_delay_s", type=float)
@click.option("--watch", "watch_s", is_flag=False, flag_value=5.0, default=None, type=float, help=help_of("watch_s"))
@_option("abstain_below", type=float)
@_option("api_keys", metavar="FILE")
@_option("rate", type=float)
@_option("burst", type=int)
@_option("log")
@json_option
def command(path: str | None, **options: Any) -> dict[str, Any]:
    """Serve registered models."""
    settings = load_settings(path, options | {"models": options["models"] or None})
    # XLA's threads are those of the thread that starts it: they take its place behind the event loop's.
    with ThreadPoolExecutor(1, "backend", step_back, (COMPUTE,)) as pool:
        backend = pool.submit(configure, overlap=False).result()
    for note in backend.notes:
        echo(note)
    return serve(settings)


if __name__ == "__main__":
    run(command)
