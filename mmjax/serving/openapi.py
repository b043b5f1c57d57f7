"""`GET /openapi.json`: what this server answers, written from its own structs and from the models it serves."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

from litestar import MediaType, Request, Response, get

from mmjax.serving.answering import MOST_TIMEOUT_MS
from mmjax.serving.engine import Served
from mmjax.serving.openapi_schemas import (
    STATUS,
    TEXT,
    Json,
    array_of,
    components,
    image_bodies,
    mixed_bodies,
    reference,
    table_body,
)
from mmjax.serving.routes import engine_of
from mmjax.serving.wire import encode_json

TOLD = {
    400: "What is wrong, a line for each thing",
    401: "An API key of this server is expected",
    404: "No such model or version; there is a list",
    405: "Another method is expected; see Allow",
    408: "The body took too long",
    413: "A limit is exceeded",
    415: "Another content type or coding is expected",
    422: "The model's answer is not a finite number",
    429: "Too many requests of this caller",
    431: "The headers are too large",
    500: "A fault of the server; its log tells more",
    503: "Not ready, or too busy; try again after a while",
    504: "The deadline has passed",
}
OIP = "Open Inference Protocol"
ALWAYS = (400, 401, 405, 408, 429, 431, 500)
"""Statuses that every request with a key may get."""
OF_PROBES = (400, 405, 408, 431, 500)
PREDICT = (413, 415, 422, 503, 504)
"""Statuses that questions to a model may get besides."""
DEADLINE: Json = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds that waiting and computing may take together; an hour at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST_TIMEOUT_MS},
}
REQUEST_ID: Json = {"X-Request-ID": {"schema": TEXT, "required": True}}
SECURITY: list[Json] = [{}, {"bearer": []}, {"key": []}]
"""A key where the server was started with keys."""


def document(models: Sequence[Served]) -> Json:
    """Return the OpenAPI document of a server of these models."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mmjax",
            "version": version_of("mmjax"),
            "description": "Predictions of registered models, for rows of tables and for images.",
        },
        "security": SECURITY,
        "tags": [{"name": "predict"}, {"name": "models"}, {"name": "health"}, {"name": OIP}],
        "paths": _predict_paths(models) | _model_paths(models) | _health_paths() | _inference_paths(models),
        "components": {
            "schemas": components(models),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def operation(
    name: str,
    summary: str,
    tag: str,
    reply: Json,
    *,
    statuses: Sequence[int] = ALWAYS,
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    headers: Json | None = None,
    also: Json | None = None,
) -> Json:
    """Return an operation: `reply` is the content of 200, `statuses` are refusals, `also` other replies."""
    problem = "application/json" if tag == OIP else "application/problem+json"
    refusals = {str(status): _refusal(status, problem) for status in sorted(statuses)}
    fine = {"description": "The answer", "headers": REQUEST_ID | (headers or {}), "content": reply}
    made: Json = {"operationId": name, "summary": summary, "tags": [tag], "responses": {"200": fine, **refusals}}
    made["responses"] |= also or {}
    if parameters:
        made["parameters"] = list(parameters)
    if body is not None:
        made["requestBody"] = {"required": True, "content": body}
    return made


def _refusal(status: int, media_type: str) -> Json:
    headers = REQUEST_ID | ({"Retry-After": {"schema": TEXT}} if status in (429, 503) else {})
    return {"description": TOLD[status], "headers": headers, "content": _as(media_type, reference("Problem"))}


def _as(media_type: str, schema: Json) -> Json:
    return {media_type: {"schema": schema}}


def _json(schema: Json) -> Json:
    return _as("application/json", schema)


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _one_of(name: str, place: str, values: Sequence[Any]) -> Json:
    """Return a parameter that is one of these values."""
    known = list(dict.fromkeys(values))
    return {"name": name, "in": place, "required": place == "path", "schema": {"enum": known} if known else TEXT}


def _names(models: Sequence[Served]) -> list[str]:
    """Return what a model may be called: NAME and NAME:VERSION."""
    return [called for model in models for called in (model.name.name, str(model))]


STATS = _object(model_stats=array_of(_object(name=TEXT, version=TEXT, inference_stats={"type": "object"})))

# ---- paths


def _predict_paths(models: Sequence[Served]) -> Json:
    served = [model for model in models if model.modality == "image"]
    images = [model.name for model in served]
    reply, timing = _json(reference("Reply")), {"Server-Timing": {"schema": TEXT, "required": True}}
    name = _one_of("model", "query", _names(served))
    name["required"] = len({image.name for image in images}) > 1
    version = _one_of("version", "query", [image.version for image in images if image.version is not None])
    of_form = {"description": "With a form; JSON names the model in its body.", "required": False}
    named = _one_of("model", "query", _names(models)) | of_form
    versions = [model.name.version for model in models if model.name.version is not None]
    mixed = operation(
        "predict", "Predictions for rows by name, images beside cells: JSON, or one row as a form", "predict", reply,
        headers=timing, statuses=(*ALWAYS, 404, *PREDICT),
        parameters=(named, _one_of("version", "query", versions) | of_form, DEADLINE), body=mixed_bodies(models),
    )  # fmt: skip
    tabular = operation(
        "predictTabular", "Predictions for rows of a table", "predict", reply, headers=timing,
        statuses=(*ALWAYS, 404, *PREDICT), parameters=(DEADLINE,), body=_json(table_body(models)),
    )  # fmt: skip
    image = operation(
        "predictImage", "Predictions for image files", "predict", reply, headers=timing,
        statuses=(*ALWAYS, 404, *PREDICT), parameters=(name, version, DEADLINE), body=image_bodies(),
    )  # fmt: skip
    return {"/predict": {"post": mixed}, "/predict/tabular": {"post": tabular}, "/predict/image": {"post": image}}


def _model_paths(models: Sequence[Served]) -> Json:
    listed = _json(_object(models=array_of(reference("ModelSummary"))))
    name = _one_of("name", "path", _names(models))
    version = _one_of("version", "query", [m.name.version for m in models if m.name.version is not None])
    described = operation(
        "model", "Schema, metrics and card of a model", "models", _json(reference("Model")),
        statuses=(*ALWAYS, 404), parameters=(name, version),
    )  # fmt: skip
    return {
        "/models": {"get": operation("models", "Which models there are", "models", listed)},
        "/models/{name}": {"get": described},
        "/openapi.json": {
            "get": operation("openapi", "This document", "models", _json({"type": "object"})),
        },
    }


def _health_paths() -> Json:
    def probe(name: str, summary: str, schema: Json) -> Json:
        unwell = {"503": {"description": "It is not so", "headers": REQUEST_ID, "content": _json(schema)}}
        made = operation(name, summary, "health", _json(schema), statuses=OF_PROBES, also=unwell)
        return {"get": made | {"security": []}}

    figures = {
        "text/plain": {"schema": TEXT},
        "application/openmetrics-text": {"schema": TEXT},
        "application/json": {"schema": reference("Metrics")},
    }
    form = {"name": "format", "in": "query", "schema": {"enum": ["json", "text"]}}
    return {
        "/health": probe("health", "How the server is", reference("Health")),
        "/health/live": probe("live", "Whether the process turns", STATUS),
        "/health/ready": probe("ready", "Whether requests are answered", STATUS),
        "/health/startup": probe("startup", "Whether the models are compiled", STATUS),
        "/metrics": {"get": operation("metrics", "Figures for Prometheus", "health", figures, parameters=(form,))},
    }


def _inference_paths(models: Sequence[Served]) -> Json:
    tag, name = OIP, _one_of("name", "path", [model.name.name for model in models])
    version = _one_of("version", "path", [str(m.name.version) for m in models if m.name.version is not None])
    boolean: Json = {"type": "boolean"}
    live, ready = _object(live=boolean), _object(ready=boolean, live=boolean)
    about = _object(name=TEXT, version=TEXT, extensions=array_of(TEXT))
    paths: Json = {
        "/v2": {"get": operation("v2", "What this server is", tag, _json(about))},
        "/v2/health/live": {"get": _probe("v2Live", "Whether the process turns", live)},
        "/v2/health/ready": {"get": _probe("v2Ready", "Whether requests are answered", ready)},
        "/v2/models": {"get": operation("v2Models", "Names of models", tag, _json(_object(models=array_of(TEXT))))},
    }
    kinds: tuple[tuple[str, Sequence[Json], str], ...] = (("", (name,), ""),)
    if version["schema"] is not TEXT:
        kinds += (("/versions/{version}", (name, version), "Version"),)
    for suffix, parameters, end in kinds:
        paths |= _paths_of_a_model(f"/v2/models/{{name}}{suffix}", parameters, end)
    return paths | _index_paths(tag)


def _paths_of_a_model(at: str, parameters: Sequence[Json], end: str) -> Json:
    tag, boolean = OIP, {"type": "boolean"}
    return {
        at: {
            "get": operation(
                f"v2Metadata{end}", "Inputs and outputs of a model", tag, _json(reference("ModelMetadata")),
                statuses=(*ALWAYS, 404), parameters=parameters,
            ),
        },
        f"{at}/ready": {
            "get": operation(
                f"v2ModelReady{end}", "Whether a model is compiled", tag, _json(_object(name=TEXT, ready=boolean)),
                statuses=(*ALWAYS, 404, 503), parameters=parameters,
            ),
        },
        f"{at}/infer": {"post": _infer(f"v2Infer{end}", parameters)},
        f"{at}/config": {
            "get": operation(
                f"v2Config{end}", "Configuration in Triton's words", tag, _json(_object(name=TEXT, platform=TEXT)),
                statuses=(*ALWAYS, 404), parameters=parameters,
            ),
        },
        f"{at}/stats": {
            "get": operation(
                f"v2Stats{end}", "Statistics of a model", tag, _json(STATS), statuses=(*ALWAYS, 404),
                parameters=parameters,
            ),
        },
    }  # fmt: skip


def _index_paths(tag: str) -> Json:
    listed = array_of(_object(name=TEXT, state=TEXT, reason=TEXT))
    asked = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "additionalProperties": False}
    index = operation(
        "v2Index", "Which models there are", tag, _json(listed), statuses=(*ALWAYS, 413), body=_json(asked)
    )
    index["requestBody"]["required"] = False
    return {
        "/v2/models/stats": {"get": operation("v2AllStats", "Statistics of all models", tag, _json(STATS))},
        "/v2/repository/index": {"post": index},
    }


def _probe(name: str, summary: str, schema: Json) -> Json:
    unwell = {"503": {"description": "It is not so", "headers": REQUEST_ID, "content": _json(schema)}}
    made = operation(name, summary, OIP, _json(schema), statuses=OF_PROBES, also=unwell)
    return made | {"security": []}


def _infer(name: str, parameters: Sequence[Json]) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = _json(reference("InferReply")) | {"application/octet-stream": binary}
    return operation(
        name, "Tensors in, tensors out; raw ones after the JSON where Inference-Header-Content-Length is given",
        OIP, content, statuses=(*ALWAYS, 404, *PREDICT), parameters=(*parameters, DEADLINE),
        body=_json(reference("WireInfer")), headers={"Inference-Header-Content-Length": {"schema": TEXT}},
    )  # fmt: skip


@get("/openapi.json")
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer the OpenAPI document of this server; it is written anew when other models are served."""
    models, state = engine_of(request).models, request.app.state
    key = tuple((model.name, model.predictor.digest) for model in models)
    made: tuple[Any, bytes] | None = state.get("openapi")
    if made is None or made[0] != key:
        made = (key, await asyncio.to_thread(lambda: encode_json(document(models))))
        state["openapi"] = made
    return Response(made[1], media_type=MediaType.JSON)


ROUTES = (openapi,)
