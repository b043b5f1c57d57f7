"""The app: routes, what every error looks like, and the life of the engine around them."""

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from mmjax.serving import openapi, page
from mmjax.serving.engine import Engine, stop, warm
from mmjax.serving.routes import REQUEST_ID, ROUTES, request_id_of
from mmjax.serving.wire import Refused, encode_problem

PROBLEM = "application/problem+json"
PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What an `X-Request-ID` may look like to be taken over."""

logger = logging.getLogger(__name__)


def make_app(engine: Engine, *, warmed: Callable[[BaseException | None], None]) -> ASGIApp:
    """Return the ASGI app. It warms the engine beside the event loop and then calls `warmed(error or None)`."""

    @contextlib.asynccontextmanager
    async def living(app: Litestar) -> AsyncIterator[None]:
        warming = asyncio.get_running_loop().run_in_executor(engine.keeper, warm, engine)
        warming.add_done_callback(lambda done: None if done.cancelled() else warmed(done.exception()))
        try:
            yield
        finally:
            stop(engine)

    app = Litestar(
        route_handlers=[*ROUTES, *page.ROUTES, *openapi.ROUTES],
        exception_handlers={Refused: refused, HTTPException: http_error, Exception: fault},
        lifespan=[living],
        state=State({"engine": engine}),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return identified(app)


def identified(app: ASGIApp) -> ASGIApp:
    """Return the app with an id for each request, the client's own where it is plain, in the scope and the reply."""

    async def identify(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # pyright: ignore[reportGeneralTypeIssues]
            await app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        scope[REQUEST_ID] = request_id  # pyright: ignore[reportGeneralTypeIssues]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await app(scope, receive, send_with_id)

    return identify


def refused(request: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    """Return the reply to a request that is refused."""
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
    body = encode_problem(error, request_id_of(request))
    return Response(body, status_code=error.status, media_type=PROBLEM, headers=headers)


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
    """Return the reply to a fault of ours, which tells nothing; the log tells all."""
    logger.error("request %s failed", request_id_of(request), exc_info=error)
    return refused(request, Refused(500, "fault", "a fault of the server; its log tells more under this request_id"))
