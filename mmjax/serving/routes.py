"""The routes: each reads a request, asks the engine and writes the reply; what is wrong is raised as Refused."""

import asyncio
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException, InternalServerException
from litestar.params import FromPath

from mmjax.data.encode import encode
from mmjax.errors import DataError
from mmjax.schema import Batch
from mmjax.serving.engine import Engine, Served, admitted, in_thread, infer, phase, select, system
from mmjax.serving.wire import (
    MAX_IMAGE_BYTES,
    MAX_TABLE_BYTES,
    Refused,
    decode_table,
    encode_json,
    encode_reply,
    image_columns,
    image_files,
    table_columns,
)

BODY_TIMEOUT_S = 30.0
"""Time to send a whole body."""
INLINE_BYTES = 32 * 1024
"""Bodies up to this size are decoded on the event loop: a thread would cost more."""
REQUEST_ID = "mmjax_request_id"
"""Where the scope keeps the id of the request."""
CLIENT_LEFT = 499
"""Nobody reads this status; it is nginx's word for a client that hung up."""

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")


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
async def live() -> Response[bytes]:
    """Answer 200 while the event loop turns."""
    return _json({"status": "ok"})


@get("/health/ready")
async def ready(request: AnyRequest) -> Response[bytes]:
    """Answer 200 when every model is compiled, else 503."""
    status = phase(engine_of(request))
    return _json({"status": status}, status=200 if status == "ready" else 503)


@get("/models")
async def models(request: AnyRequest) -> Response[bytes]:
    """Answer which models there are."""
    keys = ("name", "version", "digest", "modality", "task", "classes", "features")
    return _json({"models": [{key: m.description[key] for key in keys} for m in engine_of(request).models]})


@get("/models/{name:str}")
async def model(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
    """Answer card, schema and metrics of one model."""
    _, version = _query(request, "version")
    return _json(select(engine_of(request), name, version).description)


@post("/predict/tabular", status_code=200, request_max_body_size=MAX_TABLE_BYTES)
async def predict_tabular(request: AnyRequest) -> Response[bytes]:
    """Answer for rows of a table."""
    engine = engine_of(request)
    _query(request)
    _expect_json(request)
    body = await _body(request, MAX_TABLE_BYTES)
    async with admitted(engine):
        served, batch = await _beside(engine, body, functools.partial(_table, engine, body))
        return await _answered(request, engine, served, batch)


@post("/predict/image", status_code=200, request_max_body_size=MAX_IMAGE_BYTES)
async def predict_image(request: AnyRequest) -> Response[bytes]:
    """Answer for image files."""
    engine = engine_of(request)
    served = select(engine, *_query(request, "model", "version"), modality="image")
    _expect_plain(request)
    body = await _body(request, MAX_IMAGE_BYTES)
    async with admitted(engine):
        files = image_files(request.headers.get("content-type", ""), body)
        batch = await in_thread(engine, functools.partial(_images, served, files))
        return await _answered(request, engine, served, batch)


ROUTES = (health, live, ready, models, model, predict_tabular, predict_image)


def engine_of(request: AnyRequest) -> Engine:
    """Return the engine of the app."""
    return request.app.state.engine


def request_id_of(request: AnyRequest) -> str:
    """Return the id of the request, as its scope has it."""
    return request.scope[REQUEST_ID]  # pyright: ignore[reportGeneralTypeIssues]


def _table(engine: Engine, body: bytes) -> tuple[Served, Batch]:
    asked = decode_table(body)
    served = select(engine, _said(asked.model), _said(asked.version), modality="table")
    schema = served.predictor.schema
    return served, _encoded(lambda: encode(schema, table_columns(schema, asked)), "bad-cell")


def _said(value: T | msgspec.UnsetType) -> T | None:
    return None if isinstance(value, msgspec.UnsetType) else value


def _images(served: Served, files: list[bytes]) -> Batch:
    schema = served.predictor.schema
    return _encoded(lambda: encode(schema, image_columns(schema, files)), "bad-image")


def _encoded(work: Callable[[], Batch], reason: str) -> Batch:
    try:
        return work()
    except DataError as error:
        raise Refused(400, reason, error.problems) from error


async def _beside(engine: Engine, body: bytes, work: Callable[[], tuple[Served, Batch]]) -> tuple[Served, Batch]:
    return work() if len(body) <= INLINE_BYTES else await in_thread(engine, work)


async def _answered(request: AnyRequest, engine: Engine, served: Served, batch: Batch) -> Response[bytes]:
    scores, seconds = await infer(engine, served, batch)
    request_id = request_id_of(request)
    reply = encode_reply(served.predictor.schema, scores, served.name, seconds=seconds, request_id=request_id)
    return Response(reply, media_type=MediaType.JSON)


async def _body(request: AnyRequest, limit: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError as error:
        raise Refused(408, "slow-body", f"body: expected all of it within {BODY_TIMEOUT_S:g} s") from error
    except InternalServerException as error:  # Litestar's word for a client that hung up
        raise Refused(CLIENT_LEFT, "client-left", "the client hung up while it sent the body") from error
    except HTTPException as error:
        if error.status_code != 413:
            raise
        raise Refused(413, "too-large", f"body: expected at most {limit:,} bytes, got more") from error


def _expect_plain(request: AnyRequest) -> None:
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise Refused(415, "bad-content-encoding", f"Content-Encoding: expected none, got '{coding[:80]}'")


def _expect_json(request: AnyRequest) -> None:
    _expect_plain(request)
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json":
        told = f"Content-Type: expected application/json, got '{kind[:80]}'"
        raise Refused(415, "bad-content-type", told)


def _query(request: AnyRequest, *known: str) -> tuple[str | None, int | None]:
    """Return `model` and `version` of the query; Refused when it has other names, or one twice."""
    given = list(request.query_params.multi_items())
    names = [name for name, _ in given]
    if wrong := [name for i, name in enumerate(names) if name not in known or name in names[:i]]:
        there = " and ".join(known) if known else "no names"
        raise Refused(400, "bad-query", f"query: expected {there}, each once, got '{wrong[0][:80]}'")
    found = dict(given)
    version = str(found.get("version", ""))
    if version and not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise Refused(400, "bad-query", f"version: expected a whole number, got '{version[:80]}'")
    return found.get("model"), int(version) if version else None


def _json(document: dict[str, Any], *, status: int = 200) -> Response[bytes]:
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
