"""The routes of the Open Inference Protocol V2 (`/v2`), as KServe and Triton speak it: health, metadata, inference."""

import functools
import time
from importlib.metadata import version as version_of
from typing import NamedTuple

import numpy as np
from litestar import MediaType, Response, get, post
from litestar.params import FromPath

from mmjax.errors import DataError
from mmjax.schema import Columns
from mmjax.serving.answering import Answered, Encoded, answer, client_gone, deadline_of, in_thread
from mmjax.serving.compression import check_coding, coding_asked, deflated, inflated
from mmjax.serving.engine import Served, admitted, phase
from mmjax.serving.numbers import is_matrix, numeric_batch
from mmjax.serving.open_inference_extras import EXTRA_ROUTES, PLATFORM, AnyRequest, json_reply, named
from mmjax.serving.open_inference_inputs import columns_of, matrix_of
from mmjax.serving.open_inference_model import inputs_of, outputs_of
from mmjax.serving.open_inference_reply import asked_outputs, encode_infer
from mmjax.serving.open_inference_request import Asked, InferRequest, decode_infer
from mmjax.serving.open_inference_tensors import raw_tensor
from mmjax.serving.routes import INLINE_BYTES, SAY_JSON, TIMEOUT, engine_of, read_body, request_id_of, told_timing
from mmjax.serving.tables import bad_cells
from mmjax.serving.wire import MAX_TENSOR_BYTES, Refused

VERSION = version_of("mmjax")
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "parameters", "statistics")
HEADER_LENGTH = "inference-header-content-length"
TYPES = ("application/json", "application/octet-stream")
"""Content types of a request; without one it is taken as well, for Triton's client sends none."""
INLINE_MATRIX_BYTES = 2**20
"""Matrices up to this size are read on the event loop: nothing is done for each cell of them."""
INLINE_OUTPUTS = 16_384
"""Replies of up to so many numbers are written on the event loop."""
LEAST_PACKED = 1024
"""Bytes of a reply from which on it is worth compressing."""


@get("/v2")
async def server() -> Response[bytes]:
    """Answer what this server is."""
    return json_reply({"name": "mmjax", "version": VERSION, "extensions": EXTENSIONS})


@get("/v2/models")
async def models(request: AnyRequest) -> Response[bytes]:
    """Answer the names of the models there are."""
    return json_reply({"models": list(dict.fromkeys(model.name.name for model in engine_of(request).models))})


@get(["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"])
async def metadata(request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None) -> Response[bytes]:
    """Answer the inputs and outputs of a model."""
    predictor = named(request, name, version)[0].predictor
    versions = [str(model.name.version) for model in named(request, name, None) if model.name.version is not None]
    document = {"name": name, "versions": versions, "platform": PLATFORM}
    return json_reply(document | {"inputs": inputs_of(predictor.schema), "outputs": outputs_of(predictor)})


@get(["/v2/models/{name:str}/ready", "/v2/models/{name:str}/versions/{version:str}/ready"])
async def model_ready(
    request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None
) -> Response[bytes]:
    """Answer 200 when the model is compiled, else 503."""
    found = named(request, name, version)
    is_ready = phase(engine_of(request)) == "ready" and all(model.batcher is not None for model in found)
    return json_reply({"name": name, "ready": is_ready}, status=200 if is_ready else 503)


@post(
    ["/v2/models/{name:str}/infer", "/v2/models/{name:str}/versions/{version:str}/infer"],
    status_code=200,
    request_max_body_size=MAX_TENSOR_BYTES,
)
async def infer(request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None) -> Response[bytes]:
    """Answer for the rows or images of a request."""
    engine, served = engine_of(request), _one(request, name, version)
    coding, header_length = _expected(request)
    deadline = deadline_of(engine, request.headers.get(TIMEOUT))
    body = await read_body(request, MAX_TENSOR_BYTES)
    with admitted(engine):
        arrived, started = time.monotonic(), time.perf_counter()
        work = functools.partial(_read, served, body, coding, header_length)
        work_is_short = _is_short(served, len(body), coding, header_length)
        asked = work() if work_is_short else await in_thread(engine, work)
        if asked.request.timeout_us:
            deadline = min(arrived + asked.request.timeout_us / 1e6, deadline or float("inf"))
        answered = await answer(
            engine,
            served,
            asked.rows,
            request_id=request_id_of(request),
            decode_s=time.perf_counter() - started,
            deadline=deadline,
            deterministic=asked.request.deterministic,
            gone=client_gone(request.receive),
        )
        return await _replied(request, served, asked, answered)


ROUTES = (server, models, metadata, model_ready, infer, *EXTRA_ROUTES)


# ---- a request is read


class _Read(NamedTuple):
    """A request as it goes to the device, and what it wants to hear."""

    request: InferRequest
    outputs: tuple[Asked, ...]
    rows: Columns | Encoded


def _one(request: AnyRequest, name: str, version: str | None) -> Served:
    """Return the model that is meant; Refused when it is none or several, and where the query asks for more."""
    if request.query_params:
        raise Refused(400, "bad-query", "query: expected nothing, got parameters; they belong into the body")
    found = named(request, name, version)
    if len(found) > 1:
        there = ", ".join(str(model.name.version) for model in found)
        raise Refused(400, "which-model", f"versions: expected one of {there}, got none; say /versions/N in the path")
    return found[0]


def _expected(request: AnyRequest) -> tuple[str, int | None]:
    """Return (content coding, length of the JSON before raw tensors) of the headers; Refused where they are wrong."""
    kind = request.headers.get("content-type", TYPES[0]).split(";")[0].strip().lower()
    if kind not in TYPES:
        told = f"expected {' or '.join(TYPES)}, got '{kind[:80]}'; {SAY_JSON}"
        raise Refused(415, "bad-content-type", f"Content-Type: {told}")
    length = request.headers.get(HEADER_LENGTH)
    if length is not None and not (length.isascii() and length.isdecimal() and len(length) < 16):
        told = f"expected the length of the JSON in bytes, got '{length[:80]}'"
        raise Refused(400, "bad-header-length", f"Inference-Header-Content-Length: {told}")
    coding = check_coding(request.headers.get("content-encoding", "identity"))
    return coding, None if length is None else int(length)


def _is_short(served: Served, size: int, coding: str, header_length: int | None) -> bool:
    """Return whether a body is read in so little time that a thread would cost more."""
    if coding != "identity":
        return False
    binary = header_length is not None and header_length <= INLINE_BYTES and is_matrix(served.predictor.schema)
    return size <= (INLINE_MATRIX_BYTES if binary else INLINE_BYTES)


def _read(served: Served, body: bytes, coding: str, header_length: int | None) -> _Read:
    schema = served.predictor.schema
    if coding != "identity":
        body = inflated(body, coding, MAX_TENSOR_BYTES)
    if header_length == 0:
        request = InferRequest(inputs=(raw_tensor(inputs_of(schema), body),), outputs=(), binary=True)
    else:
        request = decode_infer(body, header_length)
    outputs = asked_outputs(served.predictor, request)
    if not is_matrix(schema):
        return _Read(request, outputs, columns_of(schema, request.inputs))
    try:
        return _Read(request, outputs, Encoded(numeric_batch(schema, matrix_of(schema, request.inputs))))
    except DataError as error:
        raise bad_cells(error) from error


# ---- and answered


async def _replied(request: AnyRequest, served: Served, asked: _Read, answered: Answered) -> Response[bytes]:
    engine, started = engine_of(request), time.perf_counter()
    name = served.name
    told = {"request_id": asked.request.id, "warnings": answered.warnings}
    work = functools.partial(encode_infer, served.predictor, answered.scores, name, asked.outputs, **told)
    is_short = np.size(answered.scores.outputs) <= INLINE_OUTPUTS
    body, header_length = work() if is_short else await in_thread(engine, work)
    headers: dict[str, str] = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
    coding = coding_asked(request.headers.get("accept-encoding", ""))
    if coding is not None and len(body) >= LEAST_PACKED:
        body = await in_thread(engine, functools.partial(deflated, body, coding))
        headers |= {"content-encoding": coding, "vary": "accept-encoding"}
    headers["server-timing"] = told_timing(request, served, answered, encode_s=time.perf_counter() - started)
    return Response(body, media_type=MediaType.JSON if header_length is None else TYPES[1], headers=headers)
