"""The app: routes, what every error looks like, and the life of the engine around them."""

import asyncio
import contextlib
import difflib
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

from mmjax.serving import health, open_inference, openapi, page
from mmjax.serving.engine import Engine, stop, warm
from mmjax.serving.observe import NOTES
from mmjax.serving.outer import Watch, make_watch, problem_reply, watched
from mmjax.serving.routes import ROUTES, request_id_of
from mmjax.serving.wire import Refused

logger = logging.getLogger(__name__)

HANDLERS = (*ROUTES, *health.ROUTES, *open_inference.ROUTES, *page.ROUTES, *openapi.ROUTES)
PATHS = sorted(path for handler in HANDLERS for path in handler.paths if "{" not in path)
"""Paths that may be meant by one that is not there."""
LONGEST_MEANT = 40
"""Characters of a path for which one like it is looked for."""


def make_app(
    engine: Engine,
    *,
    warmed: Callable[[BaseException | None], None],
    watch: Watch | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> ASGIApp:
    """Return the ASGI app. It warms the engine beside the event loop and then calls `warmed(error or None)`.

    `tell` hears a line when a model is ready, in another thread.
    """
    watch = watch or make_watch(engine)

    @contextlib.asynccontextmanager
    async def living(app: Litestar) -> AsyncIterator[None]:
        warming = asyncio.get_running_loop().run_in_executor(engine.keeper, warm, engine, tell)
        warming.add_done_callback(lambda done: None if done.cancelled() else warmed(done.exception()))
        beating = asyncio.create_task(watch.pulse.beat())
        try:
            yield
        finally:
            beating.cancel()
            stop(engine)

    app = Litestar(
        route_handlers=HANDLERS,
        exception_handlers={Refused: refused, HTTPException: http_error, Exception: fault},
        lifespan=[living],
        state=State({"engine": engine, "pulse": watch.pulse, "log": watch.log}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return watched(app, watch)


def refused(request: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    """Return the reply to a request that is refused; its reason is counted."""
    request.scope[NOTES]["reason"] = error.reason  # pyright: ignore[reportGeneralTypeIssues]
    status, headers, body = problem_reply(error, request.scope["path"], request_id_of(request))
    return Response(body, status_code=status, headers=headers)


def http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return the reply to what Litestar itself refuses: no such path, another method."""
    if error.status_code >= 500:
        return fault(request, error)
    path, headers = request.url.path, {name.lower(): value for name, value in (error.headers or {}).items()}
    match error.status_code:
        case 404:
            reason, told = "not-found", f"no such path{_near(path)}"
        case 405:
            allowed = [method for method in headers.get("allow", "").split(", ") if method != "OPTIONS"]
            reason, told = "bad-method", f"expected {' or '.join(sorted(allowed))}, got {request.method}"
        case _:
            reason, told = "bad-request", error.detail
    reply = refused(request, Refused(error.status_code, reason, f"{request.method} {path[:200]}: {told}"))
    for name, value in headers.items():
        reply.headers[name] = value
    return reply


def _near(path: str) -> str:
    """Return which paths may be meant, in words; long ones are not looked at, as that takes time."""
    begin = path.rstrip("/") + "/"
    near = [known for known in PATHS if len(begin) > 1 and known.startswith(begin)][:3]
    if not near and len(path) <= LONGEST_MEANT:
        near = difflib.get_close_matches(path, PATHS, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else "; /docs shows all there are"


def fault(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the reply to a fault of ours, which tells nothing; the log tells all, in the request's own line."""
    if request.app.state.log is None:
        logger.error("request %s failed", request_id_of(request), exc_info=error)
    else:
        told = "".join(traceback.format_exception(error))
        request.scope[NOTES]["traceback"] = told  # pyright: ignore[reportGeneralTypeIssues]
    return refused(request, Refused(500, "fault", "a fault of the server; its log tells more under this request_id"))
