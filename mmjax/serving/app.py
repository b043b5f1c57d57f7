"""The app: routes, what every error looks like, and the life of the engine around them."""

import asyncio
import contextlib
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


def make_app(engine: Engine, *, warmed: Callable[[BaseException | None], None], watch: Watch | None = None) -> ASGIApp:
    """Return the ASGI app. It warms the engine beside the event loop and then calls `warmed(error or None)`."""
    watch = watch or make_watch(engine)

    @contextlib.asynccontextmanager
    async def living(app: Litestar) -> AsyncIterator[None]:
        warming = asyncio.get_running_loop().run_in_executor(engine.keeper, warm, engine)
        warming.add_done_callback(lambda done: None if done.cancelled() else warmed(done.exception()))
        beating = asyncio.create_task(watch.pulse.beat())
        try:
            yield
        finally:
            beating.cancel()
            stop(engine)

    app = Litestar(
        route_handlers=[*ROUTES, *health.ROUTES, *open_inference.ROUTES, *page.ROUTES, *openapi.ROUTES],
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
    words = {404: "no such path", 405: "another method is expected"}
    reason = {404: "not-found", 405: "bad-method"}.get(error.status_code, "bad-request")
    told = words.get(error.status_code, error.detail)
    reply = refused(request, Refused(error.status_code, reason, f"{request.method} {request.url.path[:200]}: {told}"))
    for name, value in (error.headers or {}).items():
        reply.headers[name] = value
    return reply


def fault(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the reply to a fault of ours, which tells nothing; the log tells all, in the request's own line."""
    if request.app.state.log is None:
        logger.error("request %s failed", request_id_of(request), exc_info=error)
    else:
        told = "".join(traceback.format_exception(error))
        request.scope[NOTES]["traceback"] = told  # pyright: ignore[reportGeneralTypeIssues]
    return refused(request, Refused(500, "fault", "a fault of the server; its log tells more under this request_id"))
