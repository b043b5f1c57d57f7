"""The routes of the Open Inference Protocol V2 (`/v2`), as KServe and Triton speak it."""

from importlib.metadata import version as version_of
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.params import FromPath

from mmjax.serving.engine import Served, phase
from mmjax.serving.open_inference_model import PLATFORM, inputs_of, outputs_of
from mmjax.serving.routes import engine_of
from mmjax.serving.wire import Refused, encode_json

VERSION = version_of("mmjax")
AnyRequest = Request[Any, Any, Any]

EXTENSIONS = ("binary_tensor_data", "classification", "parameters")


@get("/v2")
async def server(request: AnyRequest) -> Response[bytes]:
    """Answer what this server is."""
    return _json({"name": "mmjax", "version": VERSION, "extensions": EXTENSIONS})


@get("/v2/health/live")
async def live() -> Response[bytes]:
    """Answer 200 while the event loop turns."""
    return _json({"live": True})


@get("/v2/health/ready")
async def ready(request: AnyRequest) -> Response[bytes]:
    """Answer 200 when every model is compiled, else 503."""
    is_ready = phase(engine_of(request)) == "ready"
    return _json({"ready": is_ready, "live": True}, status=200 if is_ready else 503)


@get("/v2/models")
async def models(request: AnyRequest) -> Response[bytes]:
    """Answer the names of the models there are."""
    return _json({"models": list(dict.fromkeys(model.name.name for model in engine_of(request).models))})


@get(["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"])
async def metadata(request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None) -> Response[bytes]:
    """Answer the inputs and outputs of a model."""
    found = named(request, name, version)
    schema = found[0].predictor.schema
    versions = [str(model.name.version) for model in named(request, name, None) if model.name.version is not None]
    document = {"name": name, "versions": versions, "platform": PLATFORM}
    return _json(document | {"inputs": inputs_of(schema), "outputs": outputs_of(schema)})


@get(["/v2/models/{name:str}/ready", "/v2/models/{name:str}/versions/{version:str}/ready"])
async def model_ready(
    request: AnyRequest, name: FromPath[str], version: FromPath[str | None] = None
) -> Response[bytes]:
    """Answer 200 when the model is compiled, else 503."""
    named(request, name, version)
    is_ready = phase(engine_of(request)) == "ready"
    return _json({"name": name, "ready": is_ready}, status=200 if is_ready else 503)


ROUTES = (server, live, ready, models, metadata, model_ready)


def named(request: AnyRequest, name: str, version: str | None) -> list[Served]:
    """Return the models of that name, and version; Refused (404) when there is none."""
    engine = engine_of(request)
    served = [model for model in engine.models if model.name.name == name]
    found = [model for model in served if version is None or str(model.name.version) == version]
    if not found:
        there = ", ".join(map(str, served or engine.models))
        wanted = f"{name[:100]}{'' if version is None else f':{version[:20]}'}"
        raise Refused(404, "no-such-model", f"model: no '{wanted}' is served; there are {there}")
    return found


def _json(document: dict[str, Any], *, status: int = 200) -> Response[bytes]:
    return Response(encode_json(document), media_type=MediaType.JSON, status_code=status)
