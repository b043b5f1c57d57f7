"""The routes of health and figures: no key, no work, an answer under any load."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from litestar import MediaType, Request, Response, get

from mmjax.serving.batcher import Device
from mmjax.serving.engine import phase, system
from mmjax.serving.routes import engine_of
from mmjax.serving.wire import Refused, encode_json

AnyRequest = Request[Any, Any, Any]

BEAT_S = 1.0
"""How often the device's thread is asked whether it turns."""
STUCK_S = 60.0
"""Longer than that no batch takes: a thread that has not answered since then is stuck or gone."""


class Pulse:
    """Whether the device's thread turns: it is given a turn of a moment each second, between two batches."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._asked: float | None = None
        """When the turn was given that has not been taken yet, by `time.monotonic`."""

    async def beat(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            if self._asked is None:
                self._asked = time.monotonic()
                self._device.turns.put(self._answer)
            await asyncio.sleep(BEAT_S)

    def fresh(self) -> bool:
        """Return whether the thread has turned lately."""
        asked = self._asked
        return asked is None or time.monotonic() - asked < STUCK_S

    def _answer(self) -> None:
        self._asked = None


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


@get("/health/live")
async def live(request: AnyRequest) -> Response[bytes]:
    """Answer 200 while the event loop turns and the device's thread does, else 503; whatever models and load do."""
    fresh = request.app.state.pulse.fresh()
    return _json({"status": "ok" if fresh else "stuck"}, status=200 if fresh else 503)


@get("/health/ready")
async def ready(request: AnyRequest) -> Response[bytes]:
    """Answer 200 while requests are answered, else 503: models are being compiled, or the server is ending."""
    status = phase(engine_of(request))
    return _json({"status": status}, status=200 if status == "ready" else 503)


@get("/health/startup")
async def startup(request: AnyRequest) -> Response[bytes]:
    """Answer 200 from the moment that the models are compiled, until the end; else 503."""
    started = engine_of(request).ready.is_set()
    return _json({"status": "started" if started else "starting"}, status=200 if started else 503)


@get("/metrics")
async def metrics(request: AnyRequest) -> Response[bytes]:
    """Answer the figures: Prometheus text, or the same as JSON with `Accept: application/json` or `?format=json`."""
    form = request.query_params.get("format")
    if form not in (None, "json", "text"):
        raise Refused(400, "bad-query", f"format: expected json or text, got '{form[:80]}'")
    accept = {"json": "application/json", "text": "text/plain"}.get(form or "", request.headers.get("accept", ""))
    body, content_type = await asyncio.to_thread(engine_of(request).metrics.exposition, accept)
    return Response(body, headers={"content-type": content_type})


ROUTES = (health, live, ready, startup, metrics)


def _json(document: dict[str, Any], *, status: int = 200) -> Response[bytes]:
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
