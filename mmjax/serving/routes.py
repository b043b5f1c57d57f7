"""The routes: each reads a request, asks the engine and writes the reply; what is wrong is raised as Refused."""

import asyncio
import functools
import time
from typing import Any, NamedTuple

from litestar import MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException, InternalServerException
from litestar.params import FromPath

from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Columns
from mmjax.serving.answering import CLIENT_LEFT, Answered, Encoded, answer, client_gone, deadline_of, in_thread
from mmjax.serving.engine import Engine, Served, admitted, select
from mmjax.serving.image_bodies import image_columns, image_files
from mmjax.serving.mixed import FORM, MAX_MIXED_BYTES, columns_of_form, columns_of_json, decode_mixed, form_of
from mmjax.serving.observe import NOTES, RECEIVED
from mmjax.serving.tables import bad_cells, read_table, rows_of
from mmjax.serving.wire import MAX_IMAGE_BYTES, MAX_TABLE_BYTES, Refused, encode_json, encode_reply, words_of

BODY_TIMEOUT_S = 30.0
"""Time to send a whole body."""
INLINE_BYTES = 32 * 1024
"""Bodies up to this size are decoded on the event loop: a thread would cost more."""
REQUEST_ID = "mmjax_request_id"
"""Where the scope keeps the id of the request."""
SAY_JSON = "with curl add -H 'Content-Type: application/json'"
"""What to do about another content type."""
TIMEOUT = "x-request-timeout-ms"
"""Header: milliseconds that waiting and computing may take together."""

AnyRequest = Request[Any, Any, Any]


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
    deadline = deadline_of(engine, request.headers.get(TIMEOUT), request.scope.get(RECEIVED))
    body = await read_body(request, MAX_TABLE_BYTES)
    with admitted(engine):
        started = time.perf_counter()
        work = functools.partial(_table, engine, body)
        asked = work() if len(body) <= INLINE_BYTES else await in_thread(engine, work)
        return await _answered(request, engine, asked, deadline, started)


@post("/predict", status_code=200, request_max_body_size=MAX_MIXED_BYTES)
async def predict(request: AnyRequest) -> Response[bytes]:
    """Answer for rows by column name, images among them: one as a form of fields and files, several as JSON."""
    engine = engine_of(request)
    kind, boundary = form_of(request.headers.get("content-type", "application/json"))
    # JSON has a place for the model's name in the body, a form has not
    named = _query(request, *(("model", "version") if kind == FORM else ()))
    served = select(engine, *named) if kind == FORM else None
    _expect_plain(request)
    deadline = deadline_of(engine, request.headers.get(TIMEOUT), request.scope.get(RECEIVED))
    body = await read_body(request, MAX_MIXED_BYTES)
    with admitted(engine):
        started = time.perf_counter()
        work = functools.partial(_mixed, engine, served, boundary, body)
        asked = await in_thread(engine, work)
        return await _answered(request, engine, asked, deadline, started)


@post("/predict/image", status_code=200, request_max_body_size=MAX_IMAGE_BYTES)
async def predict_image(request: AnyRequest) -> Response[bytes]:
    """Answer for image files."""
    engine = engine_of(request)
    served = select(engine, *_query(request, "model", "version"), modality="image")
    _expect_plain(request)
    deadline = deadline_of(engine, request.headers.get(TIMEOUT), request.scope.get(RECEIVED))
    body = await read_body(request, MAX_IMAGE_BYTES)
    with admitted(engine):
        started = time.perf_counter()
        files = image_files(request.headers.get("content-type", ""), body)
        work = functools.partial(image_columns, served.predictor.schema, files)
        columns = work() if len(files) == 1 else await in_thread(engine, work)
        return await _answered(request, engine, Asked(served, columns), deadline, started)


ROUTES = (models, model, predict, predict_tabular, predict_image)


def engine_of(request: AnyRequest) -> Engine:
    """Return the engine of the app."""
    return request.app.state.engine


def request_id_of(request: AnyRequest) -> str:
    """Return the id of the request, as its scope has it."""
    return request.scope[REQUEST_ID]  # pyright: ignore[reportGeneralTypeIssues]


class Asked(NamedTuple):
    """What a request asks, and of which model."""

    served: Served
    rows: Columns | Encoded
    deterministic: bool = False


def _table(engine: Engine, body: bytes) -> Asked:
    try:
        table = read_table(engine, body)
        return Asked(table.served, rows_of(table), table.deterministic)
    except DataError as error:
        raise bad_cells(error) from error


def _mixed(engine: Engine, served: Served | None, boundary: str, body: bytes) -> Asked:
    """Return what a form asks of the model `served`; without one, what JSON asks of the model that it names."""
    try:
        if served is not None:
            return Asked(served, columns_of_form(served.predictor.schema, boundary, body))
        asked = decode_mixed(body)
        served = select(engine, asked.model, asked.version)
        return Asked(served, columns_of_json(served.predictor.schema, asked.rows), asked.deterministic)
    except DataError as error:
        raise bad_cells(error) from error


async def _answered(
    request: AnyRequest, engine: Engine, asked: Asked, deadline: float | None, started: float
) -> Response[bytes]:
    """Return the reply; `started` is when decoding began, by `time.perf_counter`."""
    request_id, (served, rows, deterministic) = request_id_of(request), asked
    answered = await answer(
        engine,
        served,
        rows,
        request_id=request_id,
        decode_s=time.perf_counter() - started,
        deadline=deadline,
        deterministic=deterministic,
        gone=client_gone(request.receive),
    )
    got = time.perf_counter()
    words = words_of(served.predictor, answered.scores)
    told = answered.warnings
    reply = encode_reply(words, served.name, seconds=answered.infer_s, request_id=request_id, warnings=told)
    headers = {"server-timing": told_timing(request, served, answered, encode_s=time.perf_counter() - got)}
    return Response(reply, media_type=MediaType.JSON, headers=headers)


def told_timing(request: AnyRequest, served: Served, answered: Answered, *, encode_s: float) -> str:
    """Return the `Server-Timing` of a reply, after the log and the figures were told of it too."""
    notes = notes_of(str(served), len(answered.scores.prediction), answered)
    request.scope[NOTES] |= notes  # pyright: ignore[reportGeneralTypeIssues]
    engine_of(request).metrics.stage(str(served), "encode", encode_s)
    return server_timing(answered, encode_s=encode_s)


def notes_of(label: str, rows: int, answered: Answered) -> dict[str, Any]:
    """Return what the log tells of a request that a model has answered."""
    return {
        "model": label,
        "rows": rows,
        "bucket": answered.bucket,
        "queue_ms": round(1e3 * answered.queue_s, 3),
        "infer_ms": round(1e3 * answered.infer_s, 3),
    }


def server_timing(answered: Answered, *, encode_s: float) -> str:
    """Return the `Server-Timing` of a reply, in milliseconds."""
    return (
        f"queue;dur={1e3 * answered.queue_s:.3f}, decode;dur={1e3 * answered.decode_s:.3f}, "
        f"infer;dur={1e3 * answered.infer_s:.3f}, encode;dur={1e3 * encode_s:.3f}"
    )


async def read_body(request: AnyRequest, limit: int) -> bytes:
    """Return the body; Refused when it is larger than `limit` bytes (413), slow (408) or never finished (499)."""
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
        told = f"Content-Type: expected application/json, got '{kind[:80]}'; {SAY_JSON}"
        raise Refused(415, "bad-content-type", told)


def _query(request: AnyRequest, *known: str) -> tuple[str | None, int | None]:
    """Return `model` and `version` of the query; Refused when it has other names, or one twice."""
    given = list(request.query_params.multi_items())
    names = [name for name, _ in given]
    if wrong := [name for i, name in enumerate(names) if name not in known or name in names[:i]]:
        there = " and ".join(known) if known else "no names"
        meant = did_you_mean(wrong[0][:80], set(known) - {wrong[0]})
        raise Refused(400, "bad-query", f"query: expected {there}, each once, got '{wrong[0][:80]}'{meant}")
    found = dict(given)
    version = found.get("version")
    if version is not None and not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise Refused(400, "bad-query", f"version: expected a whole number, got '{version[:80]}'")
    return found.get("model"), None if version is None else int(version)


def _json(document: dict[str, Any], *, status: int = 200) -> Response[bytes]:
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
