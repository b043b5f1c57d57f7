"""The routes of health and figures: no key, no work, an answer under any load."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from litestar import MediaType, Request, Response, get

from mmjax.serving.engine import phase, system
from mmjax.serving.probes import PROBES
from mmjax.serving.routes import engine_of
from mmjax.serving.wire import Refused, encode_json

AnyRequest = Request[Any, Any, Any]


@get("/health")
async def health(request: AnyRequest) -> Response[bytes]:
    """Answer how the server is; 503 unless it answers requests."""
    engine = engine_of(request)
    status = phase(engine)
    document = {
        "status": "ok" if status == "ready" else status,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model_loaded": status == "ready",
        "models": [{"name": model.name.name, "version": model.name.version} for model in engine.models],
        "system": system(),
    }
    return _json(document, status=200 if status == "ready" else 503)


@get(list(PROBES))
async def probe(request: AnyRequest) -> Response[bytes]:
    """Answer a probe that comes with more than a plain GET; `express` answers the others."""
    status, document = PROBES[request.scope["path"].rstrip("/")](engine_of(request), request.app.state.pulse)
    return _json(document, status=status)


@get("/metrics")
async def metrics(request: AnyRequest) -> Response[bytes]:
    """Answer the figures: Prometheus text, or the same as JSON with `Accept: application/json` or `?format=json`."""
    form = request.query_params.get("format")
    if form not in (None, "json", "text"):
        raise Refused(400, "bad-query", f"format: expected json or text, got '{form[:80]}'")
    accept = {"json": "application/json", "text": "text/plain"}.get(form or "", request.headers.get("accept", ""))
    body, content_type = await asyncio.to_thread(engine_of(request).metrics.exposition, accept)
    return Response(body, headers={"content-type": content_type})


ROUTES = (health, probe, metrics)


def _json(document: dict[str, Any], *, status: int = 200) -> Response[bytes]:
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
