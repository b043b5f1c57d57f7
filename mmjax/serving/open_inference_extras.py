"""Triton's additions to the Open Inference Protocol: statistics, configuration, the index; and what is not offered."""

from typing import Any

import msgspec
from litestar import HttpMethod, MediaType, Request, Response, get, post, route
from litestar.params import FromPath

from mmjax.serving.answering import in_thread
from mmjax.serving.engine import Served, phase
from mmjax.serving.observe import Metrics
from mmjax.serving.open_inference_model import TensorSpec, inputs_of, outputs_of
from mmjax.serving.routes import engine_of, read_body
from mmjax.serving.wire import Refused, encode_json

AnyRequest = Request[Any, Any, Any]

PLATFORM = "mmjax"
STAGES = {"queue": "queue", "compute_input": "decode", "compute_infer": "infer", "compute_output": "encode"}
"""Triton's words for the stages of a request, and ours."""
MAX_INDEX_BYTES = 4096


@get(["/v2/models/{name:str}/config", "/v2/models/{name:str}/versions/{version:str}/config"])
async def config(request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None) -> Response[bytes]:
    """Answer a model's configuration in Triton's words, as far as they have a meaning here."""
    served = named(request, name, version)[0]
    schema = served.predictor.schema
    document = {
        "name": name,
        "platform": PLATFORM,
        "backend": "jax",
        "max_batch_size": served.largest,
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "input": [_triton(spec) for spec in inputs_of(schema)],
        "output": [_triton(spec) for spec in outputs_of(served.predictor)],
    }
    return json_reply(document)


def _triton(spec: TensorSpec) -> dict[str, Any]:
    """Return a tensor as Triton's configuration has it: of one row."""
    kind = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": kind, "dims": spec.shape[1:]}


@get(
    [
        "/v2/models/stats",
        "/v2/models/{name:str}/stats",
        "/v2/models/{name:str}/versions/{version:str}/stats",
    ]
)
async def stats(
    request: AnyRequest, name: FromPath[str | None] = None, version: FromPath[str | None] = None
) -> Response[bytes]:
    """Answer how often models were asked since the start, and where the time went."""
    engine = engine_of(request)
    found = list(engine.models) if name is None else named(request, name, version)
    figures = await in_thread(engine, lambda: _figures(engine.metrics))
    return json_reply({"model_stats": [_stats(figures, model) for model in found]})


Figures = dict[tuple[str, str, str], float]
"""(name of the series, model, stage or "") -> value."""


def _figures(metrics: Metrics) -> Figures:
    """Return the figures of all models."""
    return {
        (sample.name, sample.labels["model"], sample.labels.get("stage", "")): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.endswith(("_sum", "_count")) and "model" in sample.labels
    }


def _stats(figures: Figures, served: Served) -> dict[str, Any]:
    """Return a model's figures in Triton's words, times in nanoseconds; they are those of `/metrics`."""
    model = str(served)
    stages = {told: _stage(figures, model, stage) for told, stage in STAGES.items()}
    success = {"count": stages["compute_output"]["count"], "ns": sum(stage["ns"] for stage in stages.values())}
    return {
        "name": served.name.name,
        "version": "" if served.name.version is None else str(served.name.version),
        "inference_count": int(figures.get(("mmjax_batch_rows_sum", model, ""), 0)),
        "execution_count": int(figures.get(("mmjax_batch_rows_count", model, ""), 0)),
        "inference_stats": {"success": success, **stages},
    }


def _stage(figures: Figures, model: str, stage: str) -> dict[str, int]:
    seconds = figures.get(("mmjax_stage_seconds_sum", model, stage), 0.0)
    return {"count": int(figures.get(("mmjax_stage_seconds_count", model, stage), 0)), "ns": round(1e9 * seconds)}


class IndexRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v2/repository/index`, which may be empty."""

    ready: bool = False
    """Only models that are ready."""


@post("/v2/repository/index", status_code=200, request_max_body_size=MAX_INDEX_BYTES)
async def index(request: AnyRequest) -> Response[bytes]:
    """Answer which models there are, and whether each is ready."""
    body = await read_body(request, MAX_INDEX_BYTES)
    try:
        asked = msgspec.json.decode(body, type=IndexRequest) if body.strip() else IndexRequest()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "bad-request", 'body: expected nothing or {"ready": true}, got something else') from error
    engine = engine_of(request)
    is_ready = phase(engine) == "ready"
    found = [
        {"name": model.name.name, "state": "READY" if is_ready else "UNAVAILABLE", "reason": ""}
        | ({} if model.name.version is None else {"version": str(model.name.version)})
        for model in engine.models
    ]
    return json_reply(found if is_ready or not asked.ready else [])


@route(
    [
        "/v2/repository/models/{name:str}/load",
        "/v2/repository/models/{name:str}/unload",
        "/v2/models/{name:str}/trace/setting",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/systemsharedmemory/{rest:path}",
        "/v2/cudasharedmemory/{rest:path}",
    ],
    http_method=[HttpMethod.GET, HttpMethod.POST],
    include_in_schema=False,
)
async def unsupported(request: AnyRequest) -> Response[bytes]:
    """Refuse what Triton has and this server has not, by name."""
    parts = request.url.path.strip("/").split("/")
    what = {"repository": f"{parts[-1]} of models", "models": "trace", "trace": "trace", "logging": "logging"}
    name = what.get(parts[1], "shared memory")
    raise Refused(404, "unsupported", f"/v2: the extension for {name} is not supported; GET /v2 lists those that are")


EXTRA_ROUTES = (config, stats, index, unsupported)


def named(request: AnyRequest, name: str, version: str | None) -> list[Served]:
    """Return the models of that name, and version; Refused (404) when there is none."""
    models = engine_of(request).models
    found = [m for m in models if m.name.name == name and version in (None, str(m.name.version))]
    if not found:
        wanted = f"{name[:100]}{'' if version is None else f':{version[:20]}'}"
        there = ", ".join(
            f"{m.name.name}{'' if m.name.version is None else f'/versions/{m.name.version}'}" for m in models
        )
        raise Refused(404, "no-such-model", f"model: no '{wanted}' is served; there are {there}")
    return found


def json_reply(document: Any, *, status: int = 200) -> Response[bytes]:
    """Return a document as JSON."""
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
